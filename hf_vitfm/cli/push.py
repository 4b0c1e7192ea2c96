"""Publish a model on the Hub with its preprocessing, card, figures and results, in one commit.

  hf-vitfm push outputs/quickstart YOUR_NAME/MODEL_NAME --dry-run
  hf-vitfm push outputs/quickstart YOUR_NAME/MODEL_NAME
  hf-vitfm push outputs/mine YOUR_NAME/MODEL_NAME --public --format transformers,timm

A new repository is private; --dry-run lists the files, their sizes and the card, and sends nothing. Checkpoints, states
of the optimizer and the like stay here; secrets and absolute paths are refused, by file and line. The token is that of
`hf auth login`, or the environment's HF_TOKEN.
"""

import argparse


SUMMARY = "publish a model on the Hub"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("directory", help="folder of a finished run or of a saved model")
    parser.add_argument("repo_id", help="owner/name")
    visibility = parser.add_mutually_exclusive_group()
    visibility.add_argument(
        "--private",
        action="store_true",
        default=True,
        help="a new repository is for its owner alone (the default); one that exists stays as it is",
    )
    visibility.add_argument("--public", action="store_false", dest="private", help="a new repository is for everybody")
    parser.add_argument(
        "--format",
        default="hf_vitfm",
        metavar="FORMATS",
        help="hf_vitfm, transformers, dinov2, timm, open_clip, openai, mae, jax; the first at the root, others, after "
        "commas, in folders of their names (default: hf_vitfm)",
    )
    parser.add_argument("--remote-code", action="store_true", help="publish the modelling files too")
    parser.add_argument("--dry-run", action="store_true", help="list files, sizes and the card, and send nothing")
    parser.add_argument("--revision", help="branch to write to (default: main)")
    parser.add_argument("--message", help="of the commit")
    parser.add_argument("--max-file-size", type=float, default=5.0, metavar="GB", help="largest file (default: 5)")


def run(arguments: argparse.Namespace) -> int:
    """Publish, or say what would be."""
    from ..hub.push import push_to_hub

    done = push_to_hub(
        arguments.directory,
        arguments.repo_id,
        private=arguments.private,
        formats=tuple(name.strip() for name in arguments.format.split(",")),
        remote_code=arguments.remote_code,
        revision=arguments.revision,
        commit_message=arguments.message,
        dry_run=arguments.dry_run,
        max_file_size=int(arguments.max_file_size * 10**9),
    )
    print(done if arguments.dry_run else f"published: {done.commit_url}")
    return 0
