"""Images in tar files of about a thousand: packed by `densekit data pack`, read as files are."""
