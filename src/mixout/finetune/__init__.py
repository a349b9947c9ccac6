"""Fine-tune one model on one task with one method; needs the extra ``mixout[hf]``."""
