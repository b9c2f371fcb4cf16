# Copyright 2026 The gmt-jax Authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
# ==============================================================================
"""Tests for Gradient-Mask Tuning in `_gradient_masking.py`."""

import fractions

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from optax._src import alias
from optax._src import combine
from optax.contrib import _gradient_masking
from optax.schedules import _inject
import optax.tree

_RATIOS = (0.0, 0.1, 0.29, 0.5, 0.999, 1.0)


def _reference(g, mask_ratio):
  """The gradient masked by sorting."""
  g = np.asarray(g)
  magnitude = np.abs(g).astype(np.float64).ravel()
  m = int(fractions.Fraction(str(mask_ratio)) * g.size)
  if m == g.size:
    return np.zeros_like(g)
  threshold = np.sort(magnitude)[m]
  keep = np.isnan(magnitude)
  if not np.isnan(threshold):
    keep |= magnitude >= threshold
  return np.where(keep.reshape(g.shape), g, np.zeros_like(g))


def _gradient(shape, dtype='float32', seed=0):
  key = jax.random.key(seed)
  return jax.random.normal(key, shape, dtype)


class GradientMaskingTest(parameterized.TestCase):

  @parameterized.product(
      mask_ratio=_RATIOS,
      dtype=('float16', 'bfloat16', 'float32', 'complex64'),
      jit=(False, True),
  )
  def test_equals_sorting(self, mask_ratio, dtype, jit):
    tx = _gradient_masking.gmt_mask(mask_ratio)
    grads = {'a': _gradient((7, 13), dtype), 'b': [_gradient((), dtype)]}
    update = jax.jit(tx.update) if jit else tx.update
    updates, state = update(grads, tx.init(grads))
    expected = jax.tree.map(lambda g: _reference(g, mask_ratio), grads)
    jax.tree.map(np.testing.assert_array_equal, updates, expected)
    self.assertEqual(updates['a'].dtype, jnp.dtype(dtype))
    num_masked = sum(np.sum(x == 0) for x in jax.tree.leaves(expected))
    np.testing.assert_allclose(
        state.masked_fraction, num_masked / 92, rtol=1e-6, atol=1e-7
    )

  @parameterized.parameters(*_RATIOS)
  def test_ties_and_special_values(self, mask_ratio):
    g = jnp.array([0.0, -0.0, 1.0, -1.0, 1.0, jnp.inf, -jnp.inf, jnp.nan] * 4)
    tx = _gradient_masking.gmt_mask(mask_ratio)
    updates, _ = tx.update(g, tx.init(g))
    np.testing.assert_array_equal(updates, _reference(g, mask_ratio))

  def test_empty_leaves_and_trees(self):
    tx = _gradient_masking.gmt_mask(0.5)
    for tree in ({}, {'a': jnp.zeros((0, 3))}, {'a': None, 'b': jnp.ones(2)}):
      updates, state = tx.update(tree, tx.init(tree))
      self.assertEqual(jax.tree.structure(updates), jax.tree.structure(tree))
      self.assertEqual(state.count, 1)

  def test_schedules_and_injected_ratios(self):
    g = _gradient((100,))
    tx = _gradient_masking.gmt_mask(lambda count: 0.25 * count)
    state = tx.init(g)
    for step in range(5):
      updates, state = tx.update(g, state)
      self.assertEqual(np.sum(updates == 0), 25 * step)
    tx = _inject.inject_hyperparams(_gradient_masking.gmt_mask)(mask_ratio=0.5)
    state = tx.init(g)
    updates, state = tx.update(g, state)
    self.assertEqual(np.sum(updates == 0), 50)
    state.hyperparams['mask_ratio'] = jnp.asarray(1.0)
    updates, _ = tx.update(g, state)
    self.assertEqual(np.sum(updates == 0), 100)

  def test_the_optimizer_sees_the_masked_gradient(self):
    g = jnp.array([3.0, -1.0, 2.0, -5.0, 4.0])
    tx = combine.chain(_gradient_masking.gmt_mask(0.4), alias.sgd(1.0))
    updates, state = tx.update(g, tx.init(g), g)
    np.testing.assert_array_equal(updates, [-3, 0, 0, 5, -4])
    np.testing.assert_array_equal(optax.tree.get(state, 'threshold'), [3.0])

  def test_derivatives_are_those_of_the_kept_entries(self):
    g = jnp.array([3.0, -1.0, 2.0])
    tx = _gradient_masking.gmt_mask(0.4)
    f = lambda g: jnp.sum(tx.update(g, tx.init(g))[0] ** 2)
    np.testing.assert_array_equal(jax.grad(f)(g), [6.0, 0.0, 4.0])

  @parameterized.parameters(
      jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit
  )
  def test_sharded_without_a_gather(self, axis_type):
    if jax.device_count() < 8:
      self.skipTest('Needs eight devices.')
    mesh = jax.make_mesh((4, 2), ('x', 'y'), axis_types=(axis_type,) * 2)
    spec = jax.sharding.PartitionSpec('x', 'y')
    with jax.set_mesh(mesh):
      g = jax.device_put(
          _gradient((64, 32)), jax.sharding.NamedSharding(mesh, spec)
      )
      tx = _gradient_masking.gmt_mask(0.29)
      state = jax.jit(tx.init)(g)
      program = jax.jit(tx.update).lower(g, state).compile()
      updates, new_state = program(g, state)
    self.assertNotIn('all-gather', program.as_text())
    self.assertEqual(updates.sharding.spec, spec)
    self.assertEqual(
        jax.tree.map(jax.typeof, new_state), jax.tree.map(jax.typeof, state)
    )
    np.testing.assert_array_equal(updates, _reference(g, 0.29))

  def test_inside_shard_map_each_shard_has_its_threshold(self):
    if jax.device_count() < 8:
      self.skipTest('Needs eight devices.')
    mesh = jax.make_mesh(
        (8,), ('x',), axis_types=(jax.sharding.AxisType.Auto,)
    )
    tx = _gradient_masking.gmt_mask(0.5)
    spec = jax.sharding.PartitionSpec('x')
    mask = lambda g: tx.update(g, tx.init(g))[0]
    g = _gradient((16, 6))
    updates = jax.shard_map(mask, mesh=mesh, in_specs=spec, out_specs=spec)(g)
    for shard, expected in zip(np.split(updates, 8), np.split(np.array(g), 8)):
      np.testing.assert_array_equal(shard, _reference(expected, 0.5))

  def test_refuses_integers_and_ratios_outside_the_unit_interval(self):
    tx = _gradient_masking.gmt_mask(0.5)
    with self.assertRaisesRegex(TypeError, 'float or complex'):
      tx.update(jnp.arange(3), tx.init(jnp.arange(3)))
    for ratio in (-0.1, 1.1):
      with self.assertRaisesRegex(ValueError, 'must be in'):
        _gradient_masking.gmt_mask(ratio)


if __name__ == '__main__':
  absltest.main()
