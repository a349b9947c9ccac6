"""timm: a vision transformer in a plain loop. The head is new and stays plain."""

import timm
import torch

import mixout

if __name__ == "__main__":
    torch.manual_seed(0)
    size = {"img_size": 32, "depth": 2, "num_classes": 5}
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, **size)  # pretrained=True with a network
    mixout.apply_(model, mixout.Mixout(0.8))  # the patch embedding is a convolution, the head is new: neither is mixed
    print(mixout.coverage(model))

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
    images, labels = torch.randn(16, 3, 32, 32), torch.randint(5, (16,))
    model.train()
    for _step in range(3):
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"distance to the anchor: {mixout.distance(model).total:.3f}")
    model.eval()  # the plain model, without masks
    mixout.remove_(model)
