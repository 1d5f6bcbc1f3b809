"""Tensors of a checkpoint by their paths, however they are nested."""

from collections import OrderedDict

import torch

from vbp.networks.statedict import flat_tensors

ONE, TWO = torch.tensor([1.0]), torch.tensor([2.0])


def test_nested_dicts_and_lists_become_paths_in_order():
    content = {"epoch": 3, "nets": [{"a.weight": ONE}, ({"b": OrderedDict(bias=TWO)},)], "x": TWO}
    found = flat_tensors(content)
    assert list(found) == ["nets.0.a.weight", "nets.1.0.b.bias", "x"]
    assert found["nets.1.0.b.bias"].item() == 2


def test_wrappers_are_left_out_at_any_depth():
    content = {"module": {"features.module.0.weight": ONE}, "_orig_mod.features._fsdp_wrapped_module.1.weight": TWO}
    assert list(flat_tensors(content)) == ["features.0.weight", "features.1.weight"]


def test_what_would_take_the_place_of_another_keeps_its_wrapper():
    found = flat_tensors({"a.weight": ONE, "module.a.weight": TWO})
    assert {path: tensor.item() for path, tensor in found.items()} == {"a.weight": 1, "module.a.weight": 2}


def test_a_dict_in_itself_ends():
    content = {"a": ONE}
    content["again"] = content
    assert list(flat_tensors(content)) == ["a"]


def test_depth_has_no_limit():
    content = {"a": ONE}
    for _ in range(5000):
        content = {"n": content}
    assert list(flat_tensors(content)) == ["n." * 5000 + "a"]


def test_pruned_weights_are_multiplied_with_their_masks():
    weight, mask = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 0.0, 1.0])
    found = flat_tensors({"a.weight_orig": weight, "a.weight_mask": mask, "a.bias": ONE})
    assert {path: tensor.tolist() for path, tensor in found.items()} == {"a.weight": [1, 0, 3], "a.bias": [1]}
    assert list(flat_tensors({"a.weight_orig": weight})) == ["a.weight_orig"]


def test_a_lone_tensor_and_what_holds_none():
    assert list(flat_tensors(ONE)) == [""]
    assert flat_tensors({"epoch": 3, "args": [1, "two", None]}) == {}
    assert flat_tensors(7) == {}


def test_parameters_come_without_their_gradients():
    assert not flat_tensors({"a": torch.nn.Parameter(ONE)})["a"].requires_grad
