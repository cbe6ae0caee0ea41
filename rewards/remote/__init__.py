"""A reward that another process or machine computes, over HTTP with JSON."""

from .client import RemoteReward
from .server import RewardServer, serve

__all__ = ["RemoteReward", "RewardServer", "serve"]
