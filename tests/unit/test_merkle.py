"""The tree of RFC 6962 on the public vectors of Certificate Transparency's reference code, and its proofs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.audit.growing import Growing
from shared.audit.merkle import (
    Nodes,
    consistency_holds,
    consistency_path,
    inclusion_holds,
    inclusion_path,
    leaf_hash,
    root_of,
    tree_root,
)

# google/certificate-transparency-go, merkletree tests
LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
_A, _B, _C = (
    "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
    "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
    "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
)
_D, _E = (
    "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
)
_F = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"
#: Leaf (from 0), size, path.
PATHS = [
    (0, 1, []),
    (0, 8, [_A, _B, _C]),
    (5, 8, [_D, _E, ROOTS[4]]),
    (2, 3, [ROOTS[2]]),
    (1, 5, [ROOTS[1], _B, _D]),
]
#: Old size, new size, proof.
GROWTHS = [(1, 1, []), (1, 8, [_A, _B, _C]), (6, 8, [_F, _E, ROOTS[4]]), (2, 5, [_B, _D])]


def nodes_of(leaves: list[bytes]) -> Nodes:
    """All nodes, worked out anew from the leaves."""
    hashes = [leaf_hash(leaf) for leaf in leaves]
    return lambda level, number: root_of(hashes[number << level : (number + 1) << level])


def test_roots_are_those_of_the_reference() -> None:
    for size, root in enumerate(ROOTS):
        assert tree_root(size, nodes_of(LEAVES)).hex() == root


@pytest.mark.parametrize(("index", "size", "path"), PATHS)
def test_paths_of_inclusion_are_those_of_the_reference(index: int, size: int, path: list[str]) -> None:
    made = inclusion_path(index, size, nodes_of(LEAVES))
    assert [each.hex() for each in made] == path
    assert inclusion_holds(leaf_hash(LEAVES[index]), index, size, made, bytes.fromhex(ROOTS[size]))


@pytest.mark.parametrize(("old", "new", "path"), GROWTHS)
def test_proofs_of_growth_are_those_of_the_reference(old: int, new: int, path: list[str]) -> None:
    made = consistency_path(old, new, nodes_of(LEAVES))
    assert [each.hex() for each in made] == path
    assert consistency_holds(old, new, made, bytes.fromhex(ROOTS[old]), bytes.fromhex(ROOTS[new]))


@given(st.data())
def test_an_altered_proof_of_inclusion_does_not_hold(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 70))
    index = data.draw(st.integers(0, size - 1))
    leaves = [bytes([number]) for number in range(size)]
    nodes, leaf = nodes_of(leaves), leaf_hash(leaves[index])
    root, path = tree_root(size, nodes), inclusion_path(index, size, nodes)
    assert inclusion_holds(leaf, index, size, path, root)
    assert not inclusion_holds(leaf_hash(b"another"), index, size, path, root)
    assert not inclusion_holds(leaf, index, size, [*path, root], root)
    assert not inclusion_holds(leaf, size, size, path, root)
    if path:
        at = data.draw(st.integers(0, len(path) - 1))
        forged = [*path[:at], bytes(32), *path[at + 1 :]]
        assert not inclusion_holds(leaf, index, size, forged, root)
        assert not inclusion_holds(leaf, index, size, path[:-1], root)


@given(st.data())
def test_growth_is_shown_and_anything_else_is_not(data: st.DataObject) -> None:
    new = data.draw(st.integers(1, 70))
    old = data.draw(st.integers(1, new))
    leaves = [bytes([number]) for number in range(new)]
    nodes = nodes_of(leaves)
    roots = tree_root(old, nodes), tree_root(new, nodes)
    path = consistency_path(old, new, nodes)
    assert consistency_holds(old, new, path, *roots)
    changed = nodes_of([b"changed", *leaves[1:]])
    assert not consistency_holds(old, new, path, tree_root(old, changed), roots[1])
    assert not consistency_holds(old, new, path, roots[0], tree_root(new, changed))
    assert not consistency_holds(old, new, [*path, roots[0]], *roots)
    if path:
        assert not consistency_holds(old, new, path[1:], *roots)


def test_a_tree_that_grows_has_the_roots_and_tiles_of_its_leaves() -> None:
    leaves = [leaf_hash(str(number).encode()) for number in range(256 * 256 + 300)]

    def node(level: int, number: int) -> bytes:
        return root_of(leaves[number << level : (number + 1) << level])

    tiles: dict[tuple[int, int], bytes] = {}

    def keep(level: int, number: int, hashes: list[bytes], root: bytes) -> None:
        assert len(hashes) == 256
        tiles[level, number] = root

    tree, done = Growing(keep), 0
    assert tree.root() == tree_root(0, node)
    for size in (1, 2, 3, 100, 255, 256, 257, 1000, 256 * 256 - 1, 256 * 256, 256 * 256 + 1, len(leaves)):
        tree.extend(leaves[done:size])
        done = size
        assert (tree.size, tree.root()) == (size, tree_root(size, node))
    assert tiles == {**{(0, number): node(8, number) for number in range(257)}, (1, 0): node(16, 0)}
