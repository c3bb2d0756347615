"""Writes tars, and reads what can be used of them."""

import io
import re
import tarfile

from sdxl_jax.data.sources import kinds


def write(path, members):
  """Writes a tar of {name: bytes}, or of pairs where names repeat."""
  with tarfile.open(path, 'w') as tar:
    members = members.items() if isinstance(members, dict) else members
    for name, content in members:
      info = tarfile.TarInfo(name)
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))


def load(path, **settings):
  """Returns {name of a record: caption}, and the lines of what is left out."""
  lines = []
  source = kinds.make_source(
    'webdataset', {'shards': str(path), **settings}, workers=0, say=lines.append
  )
  used = [source[i] for i in range(len(source))]
  account = source.account()
  left_out = [re.sub(r'.*?\.tar: ', '', line) for line in source.left_out()]
  assert account.seen == account.used + len(left_out)
  assert str(account) == lines[0]
  names = {e['name'].split('.tar: ')[1]: e['caption'] for e in used}
  assert len(names) == account.used
  return names, left_out, account.beside


def captions(source):
  return [source[i]['caption'] for i in range(len(source))]
