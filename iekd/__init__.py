"""IE-KD: knowledge distillation by inheritance and exploration. One primitive: `train(config)` returns the record of a run."""
