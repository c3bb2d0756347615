"""sdxl_jax.train, which notes what it reads: $RECORDS, 'part row record'."""

import os
import threading

from sdxl_jax import cli, train
from sdxl_jax.data import batch_rows
from sdxl_jax.data.sources import kinds

slot_of = threading.local()
lock = threading.Lock()


class Noted:
  """A source that writes down each record read, and for which slot."""

  def __init__(self, source):
    self.source, self.sizes = source, source.sizes
    self.left_out, self.account = source.left_out, source.account
    self.keys, self.stamps, self.name = source.keys, source.stamps, source.name

  def __len__(self):
    return len(self.source)

  def __getitem__(self, index):
    part, row = slot_of.value
    with lock, open(os.environ['RECORDS'], 'a') as file:
      file.write(f'{part} {row} {index}\n')
    return self.source[index]


def main():
  make_source, getitem = kinds.make_source, batch_rows.BatchRows.__getitem__

  def noted_getitem(self, slot):
    part, row = divmod(slot, len(self.rows))
    slot_of.value = part, self.rows[row]
    return getitem(self, slot)

  kinds.make_source = lambda *args, **kw: Noted(make_source(*args, **kw))
  batch_rows.BatchRows.__getitem__ = noted_getitem
  train.define_flags()
  cli.run(train.main)


if __name__ == '__main__':
  main()
