"""Training: `tasks` say what is trained, `step` is one step, `loop` runs it and keeps the run folder."""
