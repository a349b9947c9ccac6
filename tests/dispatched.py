"""A layer whose forward another tool has replaced, and what coverage says of layers that are bypassed, for tests."""

import pytest

import mixout


def reasons(model):
    return {layer.name: layer.reason for layer in mixout.coverage(model).layers if layer.kind == "bypassed"}


def hooked(model):
    """As accelerate dispatches a large model: the forward is replaced on the instance."""
    hooks = pytest.importorskip("accelerate.hooks")
    hooks.add_hook_to_module(model[0], hooks.ModelHook())
    return model
