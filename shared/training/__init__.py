"""What gateway and workers share of fine-tuning: datasets, runs, adapters. Nothing here loads a model."""
