"""Benchmarks for a machine with a GPU. They need torch and transformers, and no Ray."""
