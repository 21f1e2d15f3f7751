"""DenseNet, and the table of the published ones."""
