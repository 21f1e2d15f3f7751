"""Images in tar files of a thousand or so: packed by `densekit data pack`, read as files are."""
