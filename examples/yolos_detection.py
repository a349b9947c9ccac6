"""Detection: YOLOS finds boxes in images. Its transformer is mixed; the new heads for classes and boxes are not."""

import torch
from transformers import YolosConfig, YolosForObjectDetection

import mixout

if __name__ == "__main__":
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    images = {"image_size": [64, 64], "patch_size": 8, "num_detection_tokens": 10}
    model = YolosForObjectDetection(YolosConfig(num_labels=3, **size, **images))  # from_pretrained(...) with a network
    mixout.apply_(model, mixout.Mixout(0.7))
    print(mixout.coverage(model))

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    pixels = torch.randn(2, 3, 64, 64)
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.2, 0.3, 0.2, 0.2]])  # centre and size, as parts of the image's
    labels = [{"class_labels": torch.tensor([0, 2]), "boxes": boxes}] * 2
    model.train()
    for _step in range(3):
        loss = model(pixel_values=pixels, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"loss {loss.item():.2f}, distance to the anchor: {mixout.distance(model).total:.3f}")
