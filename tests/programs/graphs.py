"""Graph networks by hand: GCN with index_add and a sparse-free adjacency, GAT with scatter softmax, mean aggregation by bincount."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from fill import array, compiled, fill, integers, show


class GCNConv(nn.Module):
    def __init__(self, cin, cout):
        super().__init__()
        self.lin, self.bias = nn.Linear(cin, cout, bias=False), nn.Parameter(torch.zeros(cout))

    def forward(self, x, edge_index):
        n = x.size(0)
        loops = torch.arange(n).unsqueeze(0).repeat(2, 1)
        row, col = torch.cat([edge_index, loops], dim=1)
        deg = torch.zeros(n).index_add_(0, col, torch.ones(col.numel()))
        inv = deg.pow(-0.5)
        inv[inv == float("inf")] = 0
        norm = inv[row] * inv[col]
        h = self.lin(x)
        out = torch.zeros_like(h).index_add(0, col, norm.unsqueeze(-1) * h.index_select(0, row))
        return out + self.bias


class GATConv(nn.Module):
    def __init__(self, cin, cout, heads):
        super().__init__()
        self.heads, self.cout = heads, cout
        self.lin = nn.Linear(cin, heads * cout, bias=False)
        self.att_src, self.att_dst = nn.Parameter(torch.empty(1, heads, cout)), nn.Parameter(torch.empty(1, heads, cout))
        nn.init.xavier_normal_(self.att_src, gain=1.414)
        nn.init.xavier_normal_(self.att_dst)

    def forward(self, x, edge_index):
        src, dst = edge_index
        h = self.lin(x).view(-1, self.heads, self.cout)
        alpha = F.leaky_relu((h * self.att_src).sum(-1)[src] + (h * self.att_dst).sum(-1)[dst], 0.2)
        index = dst.unsqueeze(-1).expand_as(alpha)
        top = torch.full((x.size(0), self.heads), float("-inf")).scatter_reduce(0, index, alpha, reduce="amax", include_self=True)
        weight = (alpha - top.detach().gather(0, index)).exp()
        total = torch.zeros(x.size(0), self.heads).scatter_add_(0, index, weight)
        weight = weight / (total[dst] + 1e-16)
        out = torch.zeros_like(h).scatter_add(0, dst[:, None, None].expand(-1, self.heads, self.cout), weight.unsqueeze(-1) * h[src])
        return out.flatten(1)


def scatter_mean(x, index, n):
    count = torch.bincount(index, minlength=n).clamp(min=1).to(x.dtype)
    return torch.zeros(n, x.size(1)).scatter_reduce_(0, index[:, None].expand_as(x), x, "sum") / count[:, None]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.gat = GCNConv(6, 8), GCNConv(8, 8), GATConv(8, 4, 2)
        self.out = nn.Linear(16, 3)

    def forward(self, x, edge_index):
        h = F.elu(self.conv2(F.relu(self.conv1(x, edge_index)), edge_index))
        h = torch.cat([self.gat(h, edge_index), scatter_mean(h[edge_index[0]], edge_index[1], x.size(0))], dim=-1)
        return F.log_softmax(self.out(h), dim=1)


def main():
    x, y, edge_index = array(20, 6), integers(3, 20), integers(20, 2, 60, seed=3)
    edge_index = torch.unique(edge_index, dim=1)
    mask = torch.zeros(20, dtype=torch.bool)
    mask[:12] = True
    model = fill(Net())
    optimizer = torch.optim.Adam(
        [dict(params=model.conv1.parameters(), weight_decay=5e-4), dict(params=[p for n, p in model.named_parameters() if "conv1" not in n])],
        lr=0.01,
    )

    @compiled
    def train():
        model.train()
        optimizer.zero_grad()
        out = model(x, edge_index)
        loss = F.nll_loss(out[mask], y[mask])
        loss.backward()
        optimizer.step()
        return loss

    for _ in range(5):
        show("loss", train())
    model.eval()
    pred = model(x, edge_index).argmax(dim=1)
    print("correct", int((pred[~mask] == y[~mask]).sum()), edge_index.shape[1])
    adjacency = torch.zeros(20, 20)
    adjacency[edge_index[0], edge_index[1]] = 1.0
    adjacency.fill_diagonal_(1)
    values, vectors = torch.linalg.eigh(torch.diag(adjacency.sum(1)) - (adjacency + adjacency.T) / 2)
    show("laplacian", values[0], values[-1], vectors.abs().sum())


if __name__ == "__main__":
    main()
