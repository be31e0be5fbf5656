"""Folders and repositories that hold a set to share."""

import json
import os
import subprocess
import sys

import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError

from rotalabs_steer import SteeringVector, SteeringVectorSet
from rotalabs_steer.errors import FileFormatError

FINDINGS = {
    "chosen_layer": 2,
    "calibration": {"unit": "strength 1.0 costs the budget", "budget_kl": 0.1},
    "effect": {"nats_per_token": 0.41, "low": 0.33, "high": 0.49},
    "answers": {"change": 0.05, "low": -0.02, "high": 0.12},
}


def calm(value=1.0, model="org/model", metadata=FINDINGS):
    about = {"num_pairs": 20, "token_position": "response", "dataset_sha256": "ab" * 32, "created_at": "then"}
    vectors = [SteeringVector("calm", n, torch.full((8,), value), model, metadata=about) for n in (1, 2)]
    return SteeringVectorSet("calm", vectors, metadata)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_holds_json_safetensors_and_a_card_and_nothing_else(tmp_path):
    calm().save_pretrained(tmp_path / "calm")
    assert names(tmp_path / "calm") == ["README.md", "steering_config.json", "vectors.safetensors"]
    assert SteeringVectorSet.from_pretrained(tmp_path / "calm") == calm()
    assert SteeringVectorSet.from_pretrained(str(tmp_path), subfolder="calm") == calm()


def test_the_configuration_says_how_the_vectors_are_applied(tmp_path):
    calm().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "steering_config.json").read_text("utf-8"))
    assert config["behavior"] == "calm"
    assert config["base_model_name_or_path"] == "org/model"
    assert (config["layers"], config["hidden_size"], config["dtype"]) == ([1, 2], 8, "float32")
    assert config["steering"] == {
        "operator": "add",
        "hook_point": "output of the decoder layer, before the final norm",
        "layer_numbering": "0-based decoder layers",
        "positions": "all",
    }
    assert config["norms"]["1"] == pytest.approx(8**0.5)
    assert config["chosen_layer"] == 2
    assert config["effect"] == FINDINGS["effect"]
    assert config["dataset_sha256"] == "ab" * 32


def test_the_configuration_and_the_card_say_which_layers_act(tmp_path):
    calm().save_pretrained(tmp_path / "one")
    assert json.loads((tmp_path / "one" / "steering_config.json").read_text("utf-8"))["acting_layers"] == [2]
    card = (tmp_path / "one" / "README.md").read_text("utf-8")
    assert "| Acting layers | 2; the others are alternatives to it |" in card
    spread = calm().with_acting_layers([1, 2])
    spread.save_pretrained(tmp_path / "two")
    assert json.loads((tmp_path / "two" / "steering_config.json").read_text("utf-8"))["acting_layers"] == [1, 2]
    card = (tmp_path / "two" / "README.md").read_text("utf-8")
    assert "| Acting layers | 1, 2; they act together, and one strength multiplies all of their vectors |" in card
    assert "with ActivationInjector(model, vectors, strength=1.0):" in card
    assert SteeringVectorSet.from_pretrained(tmp_path / "two") == spread


def test_the_path_of_a_model_stays_on_its_machine(tmp_path):
    calm(model="/home/somebody/models/tiny").save_pretrained(tmp_path)
    assert not any(b"somebody" in path.read_bytes() for path in tmp_path.iterdir())
    assert SteeringVectorSet.from_pretrained(tmp_path) == calm(model="tiny")


def test_the_card_says_what_is_known(tmp_path):
    calm().save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text("utf-8")
    assert "base_model: org/model" in card
    assert "CAA: mean difference of activations (Rimsky et al. 2024), read at: response" in card
    assert f"20 contrast pairs, SHA-256 {'ab' * 32}" in card
    assert "| Tuned layer | 2 |" in card
    assert "strengths from -1 to 1 cost at most 0.1 nats of KL per token" in card
    assert "+0.41 nats per token of log-odds, 95 % interval +0.33 to +0.49 |" in card
    assert "95 % interval -0.02 to +0.12: it includes zero, so no effect is shown" in card
    assert 'SteeringVectorSet.from_pretrained("PATH_OR_REPO_ID")' in card


def test_the_card_has_the_safe_range(tmp_path):
    about = {"calibration": {"budget_kl": 0.2, "safe_range": [-1.0, 1.37]}}
    SteeringVectorSet("calm", [SteeringVector("calm", 1, torch.ones(8), "org/model")], about).save_pretrained(tmp_path)
    assert "| Safe range | -1 to 1.4 |" in (tmp_path / "README.md").read_text("utf-8")


def test_the_card_says_what_is_not_known_and_no_path_of_the_machine(tmp_path):
    vectors = [SteeringVector("a|b\n# c", 1, torch.ones(8), "/home/me/secret/tiny```")]
    findings = {"effect": {"nats_per_token": "much"}, "answers": {"change": 0.1, "low": None, "high": None}}
    SteeringVectorSet("a|b\n# c", vectors, findings).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text("utf-8")
    assert "/home/me" not in card
    assert "base_model" not in card
    assert r"# Steering vectors: a\|b \# c" in card
    assert "| Dataset | not recorded |" in card
    assert "| Tuned layer | not tuned |" in card
    assert "| Effect | not readable |" in card
    assert "+0.1 in the judge's unit, from −1 to +1, without an interval, so no effect is shown |" in card
    assert card.count("```") == 2


def test_a_card_that_somebody_wrote_stays(tmp_path):
    calm().save_pretrained(tmp_path)
    calm(2.0, model="org/other").save_pretrained(tmp_path)
    assert "base_model: org/other" in (tmp_path / "README.md").read_text("utf-8")
    (tmp_path / "README.md").write_text("mine")
    calm(3.0).save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    assert SteeringVectorSet.from_pretrained(tmp_path) == calm(3.0)


def test_a_save_that_stops_between_the_files_leaves_the_old_set(tmp_path, monkeypatch):
    calm(1.0).save_pretrained(tmp_path)
    from rotalabs_steer.files import pretrained

    def stop_at_the_configuration(path, content, write=pretrained.write_atomically):
        if path.name == "steering_config.json":
            raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(pretrained, "write_atomically", stop_at_the_configuration)
        calm(2.0).save_pretrained(tmp_path)
    assert SteeringVectorSet.from_pretrained(tmp_path) == calm(1.0)
    calm(3.0).save_pretrained(tmp_path)
    assert SteeringVectorSet.from_pretrained(tmp_path) == calm(3.0)
    assert not [name for name in names(tmp_path) if name.startswith(".")]


def test_what_is_no_such_folder_is_said_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*nowhere, and no repository can have that name"):
        SteeringVectorSet.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"There is no folder \./a/b/c"):
        SteeringVectorSet.from_pretrained("./a/b/c")
    calm().save(tmp_path / "native")
    with pytest.raises(FileNotFoundError, match=r"has no steering_config.json.*Use SteeringVectorSet.load"):
        SteeringVectorSet.from_pretrained(tmp_path / "native")
    with pytest.raises(FileFormatError, match="is not a safe file name: it names a folder relative to another"):
        SteeringVectorSet.from_pretrained(tmp_path, subfolder="../native")
    with pytest.raises(FileFormatError, match="The vector set is empty: there is nothing to save"):
        SteeringVectorSet("calm").save_pretrained(tmp_path)


@pytest.mark.parametrize(("name", "content", "message"), [
    ("vectors.safetensors", lambda old: old[:-1] + b"\1", "SHA-256 differs.* changed or damaged after it was saved"),
    ("vectors.safetensors", None, r"vectors\.safetensors is missing"),
    ("steering_config.json", lambda old: old.replace(b'"2.0"', b'"3.0"'), "this release reads up to 2"),
    ("steering_config.json", lambda old: b"{}", "gives None as the SHA-256 of .*vectors.safetensors; it must have 64"),
    ("steering_config.json", lambda old: b"{", "is not valid JSON"),
])  # fmt: skip
def test_a_folder_that_does_not_hold_together_is_refused(tmp_path, name, content, message):
    calm().save_pretrained(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content((tmp_path / name).read_bytes()))
    with pytest.raises((FileFormatError, FileNotFoundError), match=message):
        SteeringVectorSet.from_pretrained(tmp_path)


def test_there_and_back_over_the_hub(hub):
    done = calm().push_to_hub("me/calm", private=True, commit_message="first", token="hf_mine")
    assert done.commit_url == f"{hub.url}/me/calm/commit/{hub.sha('me/calm', 'main')}"
    assert "Bearer hf_mine" in hub.tokens
    assert set(hub.files("me/calm")) == {".gitattributes", "README.md", "steering_config.json", "vectors.safetensors"}
    assert b'from_pretrained("me/calm")' in hub.files("me/calm")["README.md"]
    assert SteeringVectorSet.from_pretrained("me/calm", token="hf_mine") == calm()
    hub.requests.clear()
    assert SteeringVectorSet.from_pretrained("me/calm", local_files_only=True) == calm()
    assert [request for request in hub.requests if request.startswith("GET")] == []


def test_revisions_subfolders_and_pull_requests(hub):
    calm(1.0).push_to_hub("me/calm")
    first = hub.sha("me/calm", "main")
    calm(2.0).push_to_hub("me/calm")
    calm(3.0).push_to_hub("me/calm", revision="trial")
    calm(4.0).push_to_hub("me/calm", subfolder="small/calm")
    assert calm(5.0).push_to_hub("me/calm", create_pr=True).pr_url == f"{hub.url}/me/calm/discussions/1"
    assert SteeringVectorSet.from_pretrained("me/calm", revision=first) == calm(1.0)
    assert SteeringVectorSet.from_pretrained("me/calm") == calm(2.0)
    assert SteeringVectorSet.from_pretrained("me/calm", revision="trial") == calm(3.0)
    assert SteeringVectorSet.from_pretrained("me/calm", subfolder="small/calm") == calm(4.0)


def test_a_card_on_the_hub_that_somebody_wrote_stays(hub):
    calm(1.0).push_to_hub("me/calm")
    hub.commit("me/calm", "main", {"README.md": b"mine"})
    calm(2.0).push_to_hub("me/calm")
    assert hub.files("me/calm")["README.md"] == b"mine"
    assert SteeringVectorSet.from_pretrained("me/calm") == calm(2.0)


def test_both_files_come_from_one_commit(hub):
    calm(1.0).push_to_hub("me/calm")
    old = hub.files("me/calm")
    calm(2.0).push_to_hub("me/calm")
    new = hub.sha("me/calm", "main")
    SteeringVectorSet.from_pretrained("me/calm")
    fetched = [request for request in hub.requests if request.startswith("GET") and "vectors.safetensors" in request]
    assert fetched == [f"GET /me/calm/resolve/{new}/vectors.safetensors"]
    mixed = {"vectors.safetensors": old["vectors.safetensors"]}
    hub.commit("me/calm", "main", mixed)
    with pytest.raises(FileFormatError, match="SHA-256 differs"):
        SteeringVectorSet.from_pretrained("me/calm")


def test_strangers_repositories_are_not_downloaded_whole(hub):
    calm().push_to_hub("me/calm")
    hub.commit("me/calm", "main", {"pytorch_model.bin": b"evil", "evil.py": b"print('executed')"})
    SteeringVectorSet.from_pretrained("me/calm")
    assert not [request for request in hub.requests if "evil" in request or "pytorch_model" in request]
    hub.claimed_sizes["vectors.safetensors"] = 2**40
    hub.commit("me/calm", "main", {"other": b""})
    with pytest.raises(
        FileFormatError, match=r"vectors.safetensors has 1,099,511,627,776 bytes, more than .* Not down"
    ):
        SteeringVectorSet.from_pretrained("me/calm")


def test_repositories_that_are_none_are_said_so(hub):
    with pytest.raises(RepositoryNotFoundError):
        SteeringVectorSet.from_pretrained("me/nothing")
    hub.create("me/empty")
    with pytest.raises(FileNotFoundError, match=r"me/empty has no steering_config.json: .*use download_vectors"):
        SteeringVectorSet.from_pretrained("me/empty")


PROGRAM = """
import torch
from rotalabs_steer import SteeringVector, SteeringVectorSet
calm = SteeringVectorSet("calm", [SteeringVector("calm", 1, torch.ones(4), "org/model")])
calm.push_to_hub("calm")
assert SteeringVectorSet.from_pretrained("me/calm") == calm
"""


def test_a_program_with_the_real_client_and_its_own_settings(hub, tmp_path):
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_mine"}
    subprocess.run([sys.executable, "-c", PROGRAM], env=os.environ | settings, check=True)
    assert "Bearer hf_mine" in hub.tokens
