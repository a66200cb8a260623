"""What is encrypted is read again with its key, at its own place, unaltered; and in no other way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.privacy.envelope import CannotDecrypt, DataKey, Envelope, KeyDestroyed, new_master_key

KEY = Envelope.from_base64(new_master_key()).new_data_key("k")[0]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_text_comes_back_as_it_was(text: str) -> None:
    assert KEY.decrypt(KEY.encrypt(text, place="message:1"), place="message:1") == text


def test_equal_texts_do_not_look_equal() -> None:
    assert KEY.encrypt("a", place="p") != KEY.encrypt("a", place="p")


def test_a_text_moved_to_another_row_is_not_read() -> None:
    with pytest.raises(CannotDecrypt):
        KEY.decrypt(KEY.encrypt("a", place="message:1"), place="message:2")


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_an_altered_text_is_not_read(position: int, change: int) -> None:
    sealed = bytearray(KEY.encrypt("some text", place="p"))
    sealed[position % len(sealed)] ^= change
    with pytest.raises(CannotDecrypt):
        KEY.decrypt(bytes(sealed), place="p")


def test_a_text_under_another_key_is_not_read() -> None:
    other = Envelope.from_base64(new_master_key()).new_data_key("k")[0]
    with pytest.raises(CannotDecrypt):
        other.decrypt(KEY.encrypt("a", place="p"), place="p")


def test_a_data_key_is_unwrapped_by_its_master_key_alone() -> None:
    envelope = Envelope.from_base64(new_master_key())
    key, wrapped, _ = envelope.new_data_key("k")
    sealed = key.encrypt("a", place="p")
    assert envelope.unwrap("k", wrapped, envelope.version).decrypt(sealed, place="p") == "a"
    with pytest.raises(CannotDecrypt):
        Envelope.from_base64(new_master_key()).unwrap("k", wrapped, 1)
    with pytest.raises(CannotDecrypt):
        envelope.unwrap("another id", wrapped, envelope.version)


def test_a_new_master_key_wraps_new_keys_and_still_opens_old_ones() -> None:
    old = Envelope({1: b"1" * 32})
    _, wrapped, _ = old.new_data_key("k")
    new = Envelope({1: b"1" * 32, 2: b"2" * 32})
    assert new.version == 2
    assert isinstance(new.unwrap("k", wrapped, 1), DataKey)


def test_a_destroyed_key_says_so() -> None:
    with pytest.raises(KeyDestroyed):
        Envelope.from_base64(new_master_key()).unwrap("k", None, 1)


def test_a_fingerprint_tells_equality_to_the_holder_of_the_key_only() -> None:
    one, other = Envelope({1: b"1" * 32}), Envelope({1: b"2" * 32})
    assert one.fingerprint("a") == one.fingerprint("a") != one.fingerprint("b")
    assert one.fingerprint("a") != other.fingerprint("a")
    assert Envelope({1: b"1" * 32, 2: b"2" * 32}).fingerprint("a") == one.fingerprint("a")


def test_no_key_is_in_a_repr() -> None:
    assert repr(DataKey("k", b"secret")) == "DataKey(k)"


@pytest.mark.parametrize("key", ["", "not base64!", "c2hvcnQ="])
def test_a_bad_master_key_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="master key"):
        Envelope.from_base64(key)
