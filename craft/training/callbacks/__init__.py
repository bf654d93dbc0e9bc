"""What happens beside the steps: one `TrainerCallback` a file."""
