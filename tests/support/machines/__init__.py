"""What is installed on the machines that the notebooks are for.

NAME.txt holds `name==version` lines of the packages that sdxl_jax needs or
brings; its comment has the source and the date. `lowest.txt` is not a machine:
CI runs the tests with it.
"""

import pathlib
import re

FOLDER = pathlib.Path(__file__).parent


def read(name):
  """Returns the Python version, '3.13', and {package: version} of a machine."""
  text = (FOLDER / f'{name}.txt').read_text()
  python = re.search(r'^# Python (\S+):', text).group(1)
  return python, dict(re.findall(r'^([\w.-]+)==(\S+)$', text, re.M))


def lay_out(installed, folder):
  """Writes metadata to a folder, as if packages {name: version} were there."""
  for name, version in installed.items():
    stem = name.replace('-', '_')
    (info := folder / f'{stem}-{version}.dist-info').mkdir()
    info.joinpath('METADATA').write_text(
      f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n'
    )
    info.joinpath('RECORD').touch()
