"""GPU readings and judgement."""
