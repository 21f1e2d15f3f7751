"""PaddleClas' own files: its YAML, its -o, its label lists. Nothing else knows PaddleClas."""
