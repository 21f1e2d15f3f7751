"""Evaluation reports: one page, its figures, and the prediction for every image."""
