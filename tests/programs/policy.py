"""DQN with a target network and replay, REINFORCE, and PPO with advantages, on a made-up environment; the actions are given."""

import collections
import math
import random
from itertools import count

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim
from fill import array, compiled, fill, integers, show
from torch.distributions import Categorical, Normal

Transition = collections.namedtuple("Transition", ("state", "action", "next_state", "reward"))


class DQN(nn.Module):
    def __init__(self, n_observations, n_actions):
        super().__init__()
        self.layer1, self.layer2 = nn.Linear(n_observations, 16), nn.Linear(16, n_actions)

    def forward(self, x):
        return self.layer2(F.relu(self.layer1(x)))


def dqn():
    policy_net, target_net = fill(DQN(4, 2)), DQN(4, 2)
    target_net.load_state_dict(policy_net.state_dict())
    optimizer = optim.AdamW(policy_net.parameters(), lr=1e-2, amsgrad=True)
    memory = collections.deque([], maxlen=100)
    for t in count():
        s, n = array(1, 4, seed=t), array(1, 4, seed=t + 1) if t % 5 else None
        memory.append(Transition(s, torch.tensor([[t % 2]]), n, torch.tensor([math.sin(t)])))
        with torch.no_grad():
            policy_net(s).max(1).indices.view(1, 1)
        if t < 16:
            continue
        batch = Transition(*zip(*list(memory)[-16:]))
        mask = torch.tensor(tuple(map(lambda s: s is not None, batch.next_state)), device="cpu", dtype=torch.bool)
        states = torch.cat([s for s in batch.next_state if s is not None])
        state_batch, action_batch, reward_batch = torch.cat(batch.state), torch.cat(batch.action), torch.cat(batch.reward)
        values = policy_net(state_batch).gather(1, action_batch)
        next_values = torch.zeros(16)
        with torch.no_grad():
            next_values[mask] = target_net(states).max(1).values
        loss = nn.SmoothL1Loss()(values, ((next_values * 0.99) + reward_batch).unsqueeze(1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_value_(policy_net.parameters(), 100)
        optimizer.step()
        soft = target_net.state_dict()
        for key, value in policy_net.state_dict().items():
            soft[key] = value * 0.1 + soft[key] * 0.9
        target_net.load_state_dict(soft)
        show("dqn", loss)
        if t == 19:
            return


def reinforce():
    policy = fill(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3), nn.Softmax(dim=1)))
    optimizer = optim.Adam(policy.parameters(), lr=1e-2)
    eps = np.finfo(np.float32).eps.item()
    for episode in range(2):
        log_probs, rewards = [], []
        for t in range(8):
            m = Categorical(policy(array(4, seed=t + 10 * episode).unsqueeze(0)))
            assert 0 <= m.sample().item() < 3
            log_probs.append(m.log_prob(torch.tensor([(t * 7 + episode) % 3])))
            rewards.append(random.Random(t).random())
        R, returns = 0, collections.deque()
        for r in rewards[::-1]:
            R = r + 0.99 * R
            returns.appendleft(R)
        returns = torch.tensor(returns)
        returns = (returns - returns.mean()) / (returns.std() + eps)
        loss = torch.cat([-lp * R for lp, R in zip(log_probs, returns)]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        show("reinforce", loss, m.entropy())


class Agent(nn.Module):
    def __init__(self):
        super().__init__()
        self.critic = nn.Sequential(self.init(nn.Linear(3, 16)), nn.Tanh(), self.init(nn.Linear(16, 1), std=1.0))
        self.actor_mean = nn.Sequential(self.init(nn.Linear(3, 16)), nn.Tanh(), self.init(nn.Linear(16, 2), std=0.01))
        self.actor_logstd = nn.Parameter(torch.zeros(1, 2))

    @staticmethod
    def init(layer, std=np.sqrt(2), bias_const=0.0):
        torch.nn.init.orthogonal_(layer.weight, std)
        torch.nn.init.constant_(layer.bias, bias_const)
        return layer

    def get_action_and_value(self, x, action=None):
        mean = self.actor_mean(x)
        probs = Normal(mean, torch.exp(self.actor_logstd.expand_as(mean)))
        if action is None:
            action = probs.sample()
        return action, probs.log_prob(action).sum(1), probs.entropy().sum(1), self.critic(x)


def ppo():
    agent = fill(Agent())
    optimizer = optim.Adam(agent.parameters(), lr=3e-3, eps=1e-5)
    obs, actions, rewards, dones = array(8, 4, 3), array(8, 4, 2, seed=1), array(8, 4, seed=2), (integers(9, 8, 4) == 0).float()
    with torch.no_grad():
        logprobs = torch.stack([agent.get_action_and_value(o, a)[1] for o, a in zip(obs, actions)])
        values = agent.critic(obs).squeeze(-1)
        assert agent.get_action_and_value(obs[0])[0].shape == (4, 2)
        advantages, last = torch.zeros_like(rewards), 0
        for t in reversed(range(8)):
            nonterminal = 1.0 - dones[t]
            delta = rewards[t] + 0.99 * (values[t + 1] if t < 7 else 0.0) * nonterminal - values[t]
            advantages[t] = last = delta + 0.99 * 0.95 * nonterminal * last
        returns = advantages + values
    flat = [t.reshape((-1,) + t.shape[2:]) for t in (obs, actions, logprobs, advantages, returns)]

    @compiled
    def update(obs, actions, old, adv, returns):
        _, new, entropy, value = agent.get_action_and_value(obs, actions)
        logratio = new - old
        ratio = logratio.exp()
        adv = (adv - adv.mean()) / (adv.std() + 1e-8)
        pg_loss = torch.max(-adv * ratio, -adv * torch.clamp(ratio, 1 - 0.2, 1 + 0.2)).mean()
        loss = pg_loss - 0.01 * entropy.mean() + 0.5 * 0.5 * ((value.view(-1) - returns) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
        optimizer.step()
        return loss, ((ratio - 1) - logratio).mean()

    for epoch in range(3):
        for part in range(2):
            show("ppo", *update(*[t[part * 16 : (part + 1) * 16] for t in flat]))


if __name__ == "__main__":
    dqn()
    reinforce()
    ppo()
