"""`hf-vitfm COMMAND ...`: one module per command, found in a table."""

import argparse
import os
import sys
from collections.abc import Sequence

from ..version import __version__
from . import compare, convert, evaluate, info, predict, push, verify


# Each module has SUMMARY (one line), add_arguments(parser) and run(arguments) -> exit code.
COMMANDS = {
    "compare": compare,
    "convert": convert,
    "evaluate": evaluate,
    "info": info,
    "predict": predict,
    "push": push,
    "verify": verify,
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(prog="hf-vitfm", description="Vision transformers from the command line.")
    parser.add_argument("--version", action="version", version=f"hf-vitfm {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=module.SUMMARY,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code: 0 done, 1 done in part, 2 not possible as asked, 130 interrupted."""
    arguments = build_parser().parse_args(argv)
    try:
        return COMMANDS[arguments.command].run(arguments)
    except BrokenPipeError:  # `hf-vitfm predict ... --output - | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ImportError, OSError, ValueError) as error:
        from ..conversion.hide_tokens import hide_tokens

        print(f"hf-vitfm {arguments.command}: error: {hide_tokens(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
