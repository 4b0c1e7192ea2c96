"""Where labelled images may lie; every module opens one kind of place as `datasets.Dataset`s by split."""
