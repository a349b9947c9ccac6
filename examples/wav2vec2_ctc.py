"""Speech: Wav2Vec2 with CTC. The transformer is mixed; the convolutions that read the waveform are frozen."""

import torch
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

import mixout

if __name__ == "__main__":
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    convolutions = {"conv_dim": (16, 16), "conv_kernel": (10, 8), "conv_stride": (5, 4), "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "mask_time_prob": 0.0}
    config = Wav2Vec2Config(vocab_size=20, layerdrop=0.0, **size, **convolutions, **positions)
    model = Wav2Vec2ForCTC(config)  # from_pretrained(...) with a network
    model.freeze_feature_encoder()
    mixout.apply_(model, mixout.Mixout(0.7))
    print(mixout.coverage(model))

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    waves, labels = torch.randn(4, 2000), torch.randint(1, 20, (4, 6))
    model.train()
    for _step in range(3):
        loss = model(input_values=waves, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"loss {loss.item():.2f}, distance to the anchor: {mixout.distance(model).total:.3f}")
