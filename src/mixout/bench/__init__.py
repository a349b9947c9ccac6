"""The benchmark suite: what a training step costs, in ratios of interleaved pairs to plain fine-tuning."""
