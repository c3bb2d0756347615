"""Tests that text is decoded as it was written, or refused."""

import codecs
import re

import pytest

from sdxl_jax.data.sources import text_decoding

TEXT = 'un café, 犬 🦊\nline 2'


@pytest.mark.parametrize('mark', text_decoding.MARKS)
def test_marks(mark):
  data = mark + TEXT.encode(text_decoding.MARKS[mark])
  # A setting is of text without a mark.
  for encoding in ('', 'cp932'):
    assert text_decoding.decode(data, encoding) == TEXT


def test_without_a_mark():
  assert text_decoding.decode(TEXT.encode()) == TEXT
  for encoding, text in (('cp932', '犬'), ('cp1252', 'é'), ('utf-16-le', 'a')):
    assert text_decoding.decode(text.encode(encoding), encoding) == text


@pytest.mark.parametrize(
  'data, encoding, words',
  [
    (b'a\nb\xe9', '', r'byte 3 \(0xe9\), in line 2, is not utf-8'),
    (b'\x81', 'cp1252', 'byte 0 .* is not cp1252'),
    (codecs.BOM_UTF16_LE + b'a', '', 'byte 2 .* is not utf-16-le'),
    ('a\nb'.encode('utf-16-le'), '', 'line 1 has a NUL'),
  ],
)
def test_refused(data, encoding, words):
  with pytest.raises(text_decoding.BadEncoding, match=words):
    text_decoding.decode(data, encoding)


@pytest.mark.parametrize(
  'encoding', ['cp0', 'base64', 'rot13', 'a b', 'undefined', 'a\0']
)
def test_unknown_encodings(encoding):
  with pytest.raises(
    ValueError, match=re.escape(f'folder.encoding is {encoding!r}')
  ):
    text_decoding.check(encoding, 'config.data.folder.encoding')


@pytest.mark.parametrize('encoding', ['', 'utf-16', 'cp932', 'gb18030'])
def test_known_encodings(encoding):
  text_decoding.check(encoding, 'field')
