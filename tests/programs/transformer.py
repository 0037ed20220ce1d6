"""nn.Transformer for translation, with masks, sinusoidal positions, the Noam schedule; encoder layers alone, in evaluation too."""

import copy
import math

import torch
import torch.nn as nn
from fill import array, compiled, fill, integers, show
from torch import Tensor

PAD_IDX = 1


class PositionalEncoding(nn.Module):
    def __init__(self, emb_size: int, dropout: float, maxlen: int = 50):
        super().__init__()
        den = torch.exp(-torch.arange(0, emb_size, 2) * math.log(10000) / emb_size)
        pos = torch.arange(0, maxlen).reshape(maxlen, 1)
        pos_embedding = torch.zeros((maxlen, emb_size))
        pos_embedding[:, 0::2] = torch.sin(pos * den)
        pos_embedding[:, 1::2] = torch.cos(pos * den)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("pos_embedding", pos_embedding.unsqueeze(-2))

    def forward(self, token_embedding: Tensor):
        return self.dropout(token_embedding + self.pos_embedding[: token_embedding.size(0), :])


class Seq2SeqTransformer(nn.Module):
    def __init__(self, layers, emb_size, nhead, src_vocab, tgt_vocab, dropout=0.0):
        super().__init__()
        self.transformer = nn.Transformer(
            d_model=emb_size, nhead=nhead, num_encoder_layers=layers, num_decoder_layers=layers, dim_feedforward=32, dropout=dropout
        )
        self.generator = nn.Linear(emb_size, tgt_vocab)
        self.src_tok_emb, self.tgt_tok_emb = nn.Embedding(src_vocab, emb_size), nn.Embedding(tgt_vocab, emb_size)
        self.positional_encoding = PositionalEncoding(emb_size, dropout)
        self.scale = math.sqrt(emb_size)

    def forward(self, src, tgt, src_mask, tgt_mask, src_padding_mask, tgt_padding_mask):
        src_emb = self.positional_encoding(self.src_tok_emb(src.long()) * self.scale)
        tgt_emb = self.positional_encoding(self.tgt_tok_emb(tgt) * self.scale)
        outs = self.transformer(src_emb, tgt_emb, src_mask, tgt_mask, None, src_padding_mask, tgt_padding_mask, src_padding_mask)
        return self.generator(outs)


def generate_square_subsequent_mask(sz):
    mask = (torch.triu(torch.ones((sz, sz))) == 1).transpose(0, 1)
    return mask.float().masked_fill(mask == 0, float("-inf")).masked_fill(mask == 1, float(0.0))


def main():
    torch.manual_seed(0)
    model = Seq2SeqTransformer(2, 16, 2, 20, 22)
    for p in model.parameters():
        if p.dim() > 1:
            nn.init.xavier_uniform_(p)
    fill(model)
    loss_fn = torch.nn.CrossEntropyLoss(ignore_index=PAD_IDX)
    optimizer = torch.optim.Adam(model.parameters(), lr=1.0, betas=(0.9, 0.98), eps=1e-9)
    rate = lambda step: 16**-0.5 * min((step + 1) ** -0.5, (step + 1) * 10**-1.5)  # noqa: E731
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_lambda=rate)
    src, tgt = integers(18, 7, 3) + 2, integers(18, 6, 3, seed=1) + 2
    src[5:, 0] = PAD_IDX
    tgt[4:, 1] = PAD_IDX
    tgt_input, tgt_out = tgt[:-1, :], tgt[1:, :]
    src_mask = torch.zeros((7, 7)).type(torch.bool)
    tgt_mask = generate_square_subsequent_mask(5) != 0
    masks = src_mask, tgt_mask, (src == PAD_IDX).transpose(0, 1), (tgt_input == PAD_IDX).transpose(0, 1)

    @compiled
    def step(src, tgt_input, tgt_out):
        logits = model(src, tgt_input, *masks)
        optimizer.zero_grad()
        loss = loss_fn(logits.reshape(-1, logits.shape[-1]), tgt_out.reshape(-1))
        loss.backward()
        optimizer.step()
        return loss

    for _ in range(4):
        show("loss", step(src, tgt_input, tgt_out))
        scheduler.step()
    model.eval()
    with torch.no_grad():
        memory = model.transformer.encoder(model.positional_encoding(model.src_tok_emb(src) * 4), src_mask)
        show("memory", memory.sum(), memory.norm())
    layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    encoder = fill(nn.TransformerEncoder(layer, num_layers=2, norm=nn.LayerNorm(16), enable_nested_tensor=False))
    x = array(2, 5, 16)
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    pad = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    for mode in (True, False):
        encoder.train(mode)
        out = encoder(x, mask=causal, src_key_padding_mask=pad.float().masked_fill(pad, float("-inf")), is_causal=True)
        show("encoder", out[:, :3].sum(), out[0].std())
    attention = fill(nn.MultiheadAttention(16, 4, kdim=8, vdim=8, batch_first=True))
    out, weights = attention(x, array(2, 3, 8), array(2, 3, 8), need_weights=True, average_attn_weights=False)
    show("attention", out.sum(), weights.max(), weights.shape[1])
    decoder = copy.deepcopy(model.transformer.decoder)
    print(type(decoder.layers[0].multihead_attn).__name__, len(list(decoder.parameters())))


if __name__ == "__main__":
    main()
