"""Measure, repair and prove the confidence of small language models."""
