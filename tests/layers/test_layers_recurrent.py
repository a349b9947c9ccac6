"""Recurrent layers whose weights were exchanged: torch makes their list of weights anew, and Phi must be in it."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

import mixout

KINDS = [nn.RNN, nn.LSTM, nn.GRU]


def net(kind):
    torch.manual_seed(0)
    return nn.Sequential(kind(4, 5))


def answers(model, x, weights=None):
    """The outputs, also of a plain layer with these weights."""
    return (model(x) if weights is None else functional_call(model, weights, (x,)))[0].detach()


@pytest.mark.parametrize("kind", KINDS)
def test_every_pass_with_other_weights_is_mixed_and_has_all_gradients(kind):
    model, plain, x = mixout.apply_(net(kind), mixout.Mixout(0.9)), net(kind), torch.randn(3, 2, 4)
    for _ in range(3):
        weights = {name: p.detach() + torch.randn_like(p) for name, p in model.named_parameters()}
        for _ in range(2):  # the second call finds the tensors of the first
            given = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
            mixed = functional_call(model, given, (x,))[0]
            assert not torch.allclose(mixed, answers(plain, x, weights))
            gradients = torch.autograd.grad(mixed.sum(), [*given.values()], allow_unused=True)
            assert all(gradient is not None for gradient in gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_assigned_are_mixed_from_the_first_pass_on(kind):
    model, plain, x = mixout.apply_(net(kind), mixout.Mixout(0.9)), net(kind), torch.randn(3, 2, 4)
    state = {name: value + torch.randn_like(value) for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    plain.load_state_dict(state)
    assert not torch.allclose(answers(model, x), answers(plain, x))
    assert torch.equal(answers(model.eval(), x), answers(plain, x))


@pytest.mark.parametrize("kind", KINDS)
def test_beside_the_pass_of_the_anchors(kind):
    """output_penalty answers with the anchors in between; neither training nor eval may read them afterwards."""
    model = mixout.apply_(net(kind), [mixout.Mixout(0.9), mixout.OutputAnchor(1.0)], where=mixout.ALL)
    optimizer, plain, x = torch.optim.SGD(model.parameters(), lr=0.5), net(kind), torch.randn(3, 2, 4)
    for step in range(3):
        optimizer.zero_grad()
        outputs = model(x)[0]
        plain.load_state_dict(model.state_dict())
        assert step == 0 or not torch.allclose(outputs, answers(plain, x))
        hidden = outputs.transpose(0, 1)
        (hidden.square().sum() + penalty(model, x, hidden)).backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(answers(model.eval(), x), answers(plain, x))


def penalty(model, x, hidden):
    class Logits(nn.Module):
        """The layer's outputs alone, as logits."""

        def __init__(self):
            super().__init__()
            self.rnn = model

        def forward(self, x):
            return self.rnn(x)[0].transpose(0, 1)

    return mixout.output_penalty(Logits(), x, hidden)
