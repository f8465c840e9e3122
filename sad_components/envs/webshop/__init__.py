"""WebShop: search, click, choose options, buy; a local shop, or WebShop's own server by URL."""

from sad_components.envs.webshop.catalog import Catalog, Goal, Product, load_goals, load_products
from sad_components.envs.webshop.environment import WebShopEnvironment
from sad_components.envs.webshop.reward import purchase_reward
from sad_components.envs.webshop.server import WebShopServerEnvironment

__all__ = [
    "Catalog",
    "Goal",
    "Product",
    "WebShopEnvironment",
    "WebShopServerEnvironment",
    "load_goals",
    "load_products",
    "purchase_reward",
]
