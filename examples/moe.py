"""A mixture of experts: the experts' stacked weights are mixed, each input neuron of each expert on its own."""

import torch
from transformers import MixtralConfig, MixtralForCausalLM

import mixout

if __name__ == "__main__":
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_local_experts": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = MixtralForCausalLM(MixtralConfig(vocab_size=100, **size, **heads))  # from_pretrained(...) with a network
    model.set_experts_implementation("grouped_mm")  # any kernel of transformers, also "eager" and "batched_mm"
    mixout.apply_(model, mixout.Mixout(0.7))
    print(mixout.coverage(model))

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    ids = torch.randint(100, (4, 16))
    model.train()
    for _step in range(3):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"distance to the anchor: {mixout.distance(model).total:.3f}")
    mixout.remove_(model)
