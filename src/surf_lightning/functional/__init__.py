"""The mathematics: pure functions of tensors, torch and scipy alone."""
