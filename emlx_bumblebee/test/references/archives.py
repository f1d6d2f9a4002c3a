"""The archives of the checkpoints of ../references_test.exs: one for each family of models.

A plain tar file whose members are NAME/FILE, sorted, without times and owners, so that the same files are the same
bytes. generate.py writes them; they change only where a checkpoint does.
"""

import io
import pathlib
import tarfile

FOLDER = pathlib.Path(__file__).parent

# For each archive: the prefixes of its checkpoints' names. The longest prefix applies.
FAMILIES = {
    "albert": ["albert"],
    "bart": ["bart", "mbart", "m2m100", "blenderbot"],
    "bert": ["bert", "nomic_bert"],
    "clip": ["clip", "blip"],
    "convnext": ["convnext", "resnet"],
    "distilbert": ["distilbert"],
    "gemma": ["gemma", "gemma3"],
    "gpt": ["gpt2", "gpt_big_code", "gpt_neo_x"],
    "layout_lm": ["layout_lm"],
    "llama": ["llama", "smollm3"],
    "mistral": ["mistral"],
    "modernbert": ["modernbert"],
    "mpnet": ["mpnet"],
    "phi": ["phi", "phi3"],
    "qwen3": ["qwen3"],
    "roberta": ["roberta", "camembert", "xlm_roberta"],
    "swin": ["swin"],
    "t5": ["t5"],
    "vit": ["vit", "deit", "dino_v2"],
    "whisper": ["whisper"],
}


def archive(name):
    """Returns the path of a checkpoint's archive."""
    begins = [
        (len(beginning), family)
        for family, beginnings in FAMILIES.items()
        for beginning in beginnings
        if name == beginning or name.startswith(beginning + "_")
    ]
    if not begins:
        raise ValueError(f"no archive of archives.py's FAMILIES holds {name}: add what its name begins with")
    return FOLDER / f"{max(begins)[1]}.tar"


def read(path):
    """Returns the members of an archive, bytes by name."""
    if not path.exists():
        return {}
    with tarfile.open(path, "r:") as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def write(path, members):
    """Writes the members, bytes by name, to an archive."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in sorted(members.items()):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def put(name, folder):
    """Replaces a checkpoint in its archive by the files of a folder."""
    path = archive(name)
    members = {member: data for member, data in read(path).items() if not member.startswith(name + "/")}
    for file in pathlib.Path(folder).iterdir():
        members[f"{name}/{file.name}"] = file.read_bytes()
    write(path, members)
