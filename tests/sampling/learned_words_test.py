"""Learned words in a pipeline: token embeddings grow, prompts reach them."""

import numpy as np
import pytest

from sdxl_jax.sampling import pipelines, prompt_plan, settings
from sdxl_jax.weights import embedding_writer, textual_inversion
from tests.support import learned_words, text_encoders
from tests.support.learned_words import BASE, REFINER, save

WORD = learned_words.vectors(3)
LIMIT = 1e-5  # of context and pooled, whose largest numbers are about 3
PROMPTS = [
  'a photo of {}',
  'a fox, {}! and {}.',
  'X{}x',
  '{}_1 alone',
  'no word',
]


def tables(pipeline):
  return {
    name: np.asarray(
      params['text_model']['embeddings']['token_embedding']['embedding']
    )
    for name, params in pipeline.params.items()
    if name.startswith('text_encoder')
  }


def encode(pipeline, *prompts, **options):
  """(context, pooled) of prompts."""
  ((context, pooled),) = text_encoders.encode_branches(
    pipeline.model.text,
    pipeline.params,
    pipeline.tokenize,
    prompt_plan.Prompts(list(prompts)),
    settings.SampleSettings(**options),
    force_zeros=True,
    guided=False,
  )
  return np.asarray(context), np.asarray(pooled)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """The paths of files of words, by layout."""
  folder = tmp_path_factory.mktemp('words')
  one = learned_words.vectors(2, seed=1)['clip_l']
  words = {
    'sdxl': ('mystyle', WORD),
    'one': ('old', {'<oldone>': one}),
    'width': ('wide', {'<wide>': np.zeros((1, 1024), 'f4')}),
  }
  return {
    kind: save(folder / f'{name}.safetensors', tensors)
    for kind, (name, tensors) in words.items()
  }


@pytest.fixture(scope='module')
def pipeline(files):
  return pipelines.load(BASE, embeddings=[files['sdxl'], files['one']])


def test_token_embeddings_grow(pipeline, files):
  plain, grown = tables(pipelines.load(BASE)), tables(pipeline)
  for (name, table), key in zip(plain.items(), learned_words.NAMES):
    np.testing.assert_array_equal(grown[name][:49408], table)
    np.testing.assert_array_equal(grown[name][49408:49411], WORD[key])
  assert [len(t) for t in grown.values()] == [49413, 49411]
  assert pipeline.model.text.vocab_sizes == (49413, 49411)
  assert pipeline.tokenize.sizes == (49413, 49411)
  first, second = pipeline.notes[-2:]
  assert first == (
    f"{files['sdxl']}: the word 'mystyle', vectors: 3 for text_encoder, 3 for "
    'text_encoder_2'
  )
  assert "'<oldone>', vectors: 2 for text_encoder. It has none for " in second
  assert (
    'text_encoder_2, of width 16, where the word is read as plain' in second
  )


def test_names_of_other_programs(pipeline):
  """ComfyUI's embedding:NAME, with weights, and A1111's name of the file."""
  expected = encode(pipeline, 'a mystyle and <oldone>, end')
  for prompt in (
    'a embedding:mystyle and <oldone>, end',
    'A MyStyle and <OldOne>, end',
    'a embedding:mystyle.safetensors and <oldone>, end',
  ):
    for one, other in zip(encode(pipeline, prompt), expected):
      np.testing.assert_array_equal(one, other)
  weighted = [
    encode(pipeline, f'a ({name}:1.3) end', weighted_prompts=True)
    for name in ('mystyle', 'embedding:mystyle')
  ]
  for one, other in zip(*weighted):
    np.testing.assert_array_equal(one, other)
  assert (weighted[0][0] != encode(pipeline, 'a mystyle end')[0]).any()
  # By the name of its file, for the text encoder that it has vectors for.
  ids = pipeline.tokenize(['old', '<oldone>', 'embedding:old', 'a'])
  assert ids[0, 0].tolist() != ids[1, 0].tolist()  # 'old' is a word already
  np.testing.assert_array_equal(ids[1, 0], ids[2, 0])
  np.testing.assert_array_equal(ids[2, 1], pipeline.tokenize([''])[0, 1])


def test_a_refiner_takes_bigg_alone(files):
  refiner = pipelines.load(REFINER, embeddings=[files['sdxl'], files['one']])
  (table,) = tables(refiner).values()
  np.testing.assert_array_equal(table[49408:], WORD['clip_g'])
  assert refiner.model.text.vocab_sizes == (None, 49411)
  assert 'vectors: none. It has none for text_encoder_2' in refiner.notes[-1]


def test_refused(files, tmp_path):
  nan = np.full((1, 12), np.nan, np.float32)
  nan = save(tmp_path / 'nan.safetensors', {'emb_params': nan})
  for specs, message in [
    ([files['width']], 'wide.safetensors: its vectors .* have 1024 numbers'),
    ([f'fox={files["sdxl"]}'], "mystyle.safetensors: the word 'fox' is in the"),
    ([files['sdxl'], files['sdxl']], "both have the word 'mystyle' for text_e"),
    ([nan], 'contains NaN or infinity'),
  ]:
    with pytest.raises(ValueError, match=message):
      pipelines.load(BASE, embeddings=specs)
  with pytest.raises(FileNotFoundError, match='none.pt: no such file'):
    pipelines.load(BASE, embeddings=['none.pt'])


def test_a_padded_table_is_cut_to_its_tokens(files, tmp_path):
  """A table may have more rows than there are tokens; a word follows these."""
  folder = learned_words.folder(tmp_path / 'model', ['<s0>', '<s1>'])
  for name in ('tokenizer', 'tokenizer_2'):
    file = folder / name / 'added_tokens.json'
    file.write_text('{"<s0>": 49408}')
    config = folder / name / 'tokenizer_config.json'
    text = config.read_text()
    start = text.index('"49409"')
    end = text.index('}', start)
    start = text.rindex(',', 0, start)
    config.write_text(text[:start] + text[end + 1 :])
  pipeline = pipelines.load(folder, embeddings=[files['sdxl']])
  assert [len(table) for table in tables(pipeline).values()] == [49412] * 2
  ids = pipeline.tokenize(['<s0> mystyle <s1>'])
  assert ids[0, :, 1:5].tolist() == [[49408, 49409, 49410, 49411]] * 2


def check(reference, pipeline, word):
  """Compares ids, context and pooled with a live pipeline of diffusers."""
  for prompt in PROMPTS:
    prompt = prompt.replace('{}', word)
    rows = reference.tokenizer, reference.tokenizer_2
    for ids, row in zip(pipeline.tokenize([prompt])[0], rows):
      expected = row(
        reference.maybe_convert_prompt(prompt, row),
        padding='max_length',
        max_length=77,
        truncation=True,
      ).input_ids
      assert ids.tolist() == expected, prompt
    expected = reference.encode_prompt(
      prompt, do_classifier_free_guidance=False
    )
    for ours, theirs in zip(encode(pipeline, prompt), expected[::2]):
      difference = np.abs(ours - theirs.detach().numpy()).max()
      assert difference < LIMIT, (prompt, difference)


@pytest.mark.torch
def test_words_are_those_of_diffusers(pipeline):
  torch = pytest.importorskip('torch')
  diffusers = pytest.importorskip('diffusers')
  reference = diffusers.StableDiffusionXLPipeline.from_pretrained(BASE)
  old = learned_words.vectors(2, seed=1)['clip_l']
  for array, row, name in [
    (WORD['clip_l'], '', 'mystyle'),
    (WORD['clip_g'], '_2', 'mystyle'),
    (old, '', '<oldone>'),
  ]:
    reference.load_textual_inversion(
      torch.tensor(array),
      token=name,
      tokenizer=getattr(reference, f'tokenizer{row}'),
      text_encoder=getattr(reference, f'text_encoder{row}'),
    )
  check(reference, pipeline, 'mystyle')
  check(reference, pipeline, '<oldone>')


@pytest.mark.torch
@pytest.mark.parametrize('layout', embedding_writer.LAYOUTS)
def test_written_words_are_those_of_diffusers(layout, tmp_path):
  """Files that are written here, loaded by diffusers, encode alike."""
  torch = pytest.importorskip('torch')
  diffusers = pytest.importorskip('diffusers')
  safetensors_torch = pytest.importorskip('safetensors.torch')
  vectors = dict(zip(learned_words.WIDTHS, WORD.values()))
  word = textual_inversion.Word('<toy>', vectors, (), tmp_path)
  path = tmp_path / 'toy.safetensors'
  if layout == 'diffusers':
    path = tmp_path / 'toy'
  embedding_writer.save(path, word, layout)
  reference = diffusers.StableDiffusionXLPipeline.from_pretrained(BASE)
  for encoder, row, file, key in [
    ('text_encoder', 'tokenizer', 'learned_embeds', 'clip_l'),
    ('text_encoder_2', 'tokenizer_2', 'learned_embeds_2', 'clip_g'),
  ]:
    # As the guide of diffusers loads each layout.
    if layout == 'diffusers':
      given = dict(token='<toy>', weight_name=f'{file}.safetensors')
      given['pretrained_model_name_or_path'] = str(path)
    else:
      tensors = safetensors_torch.load_file(path)
      assert isinstance(tensors[key], torch.Tensor)
      given = dict(token='<toy>', pretrained_model_name_or_path=tensors[key])
    reference.load_textual_inversion(
      **given,
      text_encoder=getattr(reference, encoder),
      tokenizer=getattr(reference, row),
    )
  ours = pipelines.load(BASE, embeddings=[str(path)])
  assert "the word '<toy>', vectors: 3 for text_encoder, 3" in ours.notes[-1]
  check(reference, ours, '<toy>')


@pytest.mark.torch
@pytest.mark.parametrize('eos', [2, 49407])
def test_added_tokens_are_pooled_as_in_diffusers(eos, tmp_path):
  pytest.importorskip('torch')
  diffusers = pytest.importorskip('diffusers')
  folder = learned_words.folder(tmp_path / 'model', ['<s0>', '<s1>'], eos)
  reference = diffusers.StableDiffusionXLPipeline.from_pretrained(folder)
  assert reference.text_encoder.config.eos_token_id == eos
  check(reference, pipelines.load(folder), '<s1><s0>')
