"""p by depth: the lower layers, which are the more general ones, are kept nearer to their start."""

import torch
from transformers import BertConfig, BertForSequenceClassification

import mixout
from mixout import Mixout

if __name__ == "__main__":
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    model = BertForSequenceClassification(BertConfig(vocab_size=100, **size))  # from_pretrained(...) with a network
    mixout.apply_(model, mixout.by_depth(model, lambda depth: Mixout(0.9 - 0.6 * depth)))
    # By hand: mixout.apply_(model, {r"encoder\.layer\.[01]\.": Mixout(0.9), "encoder": Mixout(0.3)})
    print({name: round(p, 2) for name, p in mixout.state(model).by_layer.items() if name.endswith("query")})

    schedule = mixout.PScheduler(model, mixout.schedule.LinearRamp(0.0, 0.9, steps=3))  # the others in proportion
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    ids, labels = torch.randint(100, (8, 16)), torch.randint(2, (8,))
    model.train()
    for _step in range(3):
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    by_layer = mixout.distance(model).by_layer
    print({name: round(far, 3) for name, far in by_layer.items() if name.endswith("query.weight")})
