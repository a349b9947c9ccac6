"""The operation on raw tensors: the definition, the memory-lean mix and the column-sparse linear."""
