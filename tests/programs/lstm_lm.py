"""A word language model with an LSTM, truncated backpropagation and clipping; a tagger on packed sequences of unequal length."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from fill import array, compiled, fill, integers, show
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence, pad_sequence


class RNNModel(nn.Module):
    def __init__(self, rnn_type, ntoken, ninp, nhid, nlayers, dropout=0.0):
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.encoder = nn.Embedding(ntoken, ninp)
        self.rnn = getattr(nn, rnn_type)(ninp, nhid, nlayers, dropout=dropout)
        self.decoder = nn.Linear(nhid, ntoken)
        self.rnn_type, self.nhid, self.nlayers, self.ntoken = rnn_type, nhid, nlayers, ntoken
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)

    def forward(self, input, hidden):
        output, hidden = self.rnn(self.drop(self.encoder(input)), hidden)
        return F.log_softmax(self.decoder(self.drop(output)).view(-1, self.ntoken), dim=1), hidden

    def init_hidden(self, bsz):
        weight = next(self.parameters())
        if self.rnn_type == "LSTM":
            return (weight.new_zeros(self.nlayers, bsz, self.nhid), weight.new_zeros(self.nlayers, bsz, self.nhid))
        return weight.new_zeros(self.nlayers, bsz, self.nhid)


def repackage_hidden(h):
    return h.detach() if isinstance(h, torch.Tensor) else tuple(repackage_hidden(v) for v in h)


def batchify(data, bsz):
    nbatch = data.size(0) // bsz
    return data.narrow(0, 0, nbatch * bsz).view(bsz, -1).t().contiguous()


class Tagger(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.embed = nn.Embedding(12, 6, padding_idx=0)
        self.rnn = kind(6, 5, num_layers=2, batch_first=True, bidirectional=True)
        self.out = nn.Linear(10, 3)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(self.embed(x), lengths.cpu(), batch_first=True, enforce_sorted=False)
        assert isinstance(packed, PackedSequence)
        hidden, last = self.rnn(packed)
        padded, sizes = pad_packed_sequence(hidden, batch_first=True)
        last = last[0] if isinstance(last, tuple) else last
        return self.out(padded), torch.cat([last[-2], last[-1]], dim=1), sizes


def main():
    train = batchify(integers(20, 200), 4)
    for kind in ("LSTM", "GRU"):
        model = fill(RNNModel(kind, 20, 8, 10, 2))
        criterion, lr = nn.NLLLoss(), 2.0
        hidden = model.init_hidden(4)
        run = compiled(lambda d, h, m=model: m(d, h))
        for _, i in enumerate(range(0, 30, 10)):
            data, targets = train[i : i + 10], train[i + 1 : i + 11].view(-1)
            model.zero_grad()
            hidden = repackage_hidden(hidden)
            output, hidden = run(data, hidden)
            loss = criterion(output, targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
            for p in model.parameters():
                p.data.add_(p.grad, alpha=-lr)
            show(kind, loss)
    sequences = [integers(11, n, seed=n) + 1 for n in (5, 3, 7)]
    lengths = torch.tensor([len(s) for s in sequences])
    x = pad_sequence(sequences, batch_first=True, padding_value=0)
    y = pad_sequence([s % 3 for s in sequences], batch_first=True, padding_value=-100)
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        model = fill(Tagger(kind))
        opt = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(3):
            logits, last, sizes = model(x, lengths)
            loss = F.cross_entropy(logits.transpose(1, 2), y) + 0.01 * last.square().sum()
            opt.zero_grad()
            loss.backward()
            opt.step()
            show(kind.__name__, loss, model.embed.weight.grad[0].abs().sum())
        print(sizes.tolist())
    cell, h = fill(nn.LSTMCell(3, 4)), None
    for t in array(5, 2, 3):
        h = cell(t, h)
    show("cell", h[0].sum(), h[1].sum())


if __name__ == "__main__":
    main()
