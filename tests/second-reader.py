#!/usr/bin/env python3
"""A second reader of bundles, written from bundle-format.md alone. Usage: second-reader.py BUNDLE, or all its VOLUMES

Demands of the bundle all that the page says of readers and of writers, and prints what it holds as JSON; or says what
is wrong and exits with 1. Needs nothing but Python 3.8 and the program `zstd`."""
import base64
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import unicodedata
from collections import namedtuple

MIB, BLOCK, FRAME = 1 << 20, 512, 4 << 20
FILE_SET = "application/vnd.airbundle.files.v1"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEXES = {"application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"}
KINDS = {OCI_MANIFEST, "application/vnd.docker.distribution.manifest.v2+json"} | INDEXES
MEMBERS = "schemaVersion mediaType artifactType config digest size layers manifests annotations urls platform".split()
DIGEST, LABEL, WORD = "sha256:[0-9a-f]{64}", "[a-z0-9](?:[a-z0-9-]*[a-z0-9])?", "[a-z0-9]+"
REFERENCE = re.compile(
    r"(?=[^/]*[.:]|localhost/)"  # what makes a host of it
    r"(?!docker\.io/[^/]*$|(?:index|registry-1)\.docker\.io/)"  # Docker Hub has one form
    rf"(?P<host>(?:{LABEL}(?:\.{LABEL})*|\[[0-9a-f:.]+\])(?::(?P<port>[1-9][0-9]*))?)"
    rf"/(?P<repository>{WORD}(?:(?:/|\.|__?|-+){WORD})*)"
    rf"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}}(?:@{DIGEST})?|@{DIGEST})"
)
Frame = namedtuple("Frame", "offset size content magic payload", defaults=(0, None, b""))

def demand(condition, message):
    condition or sys.exit(message)

def exact(source, length):
    data = source.read(length)
    demand(len(data) == length, "the bundle is truncated")
    return data

def read_frames(file):
    """All frames of the file; nothing is decoded."""
    number = lambda length: int.from_bytes(exact(file, length), "little")
    while file.peek(1):
        offset, magic = file.tell(), number(4)
        if 0x184D2A50 <= magic <= 0x184D2A5F:
            demand((length := number(4)) <= 64 * MIB, f"the skippable frame at {offset} is too large")
            yield Frame(offset, 8 + length, magic=magic, payload=exact(file, length))
            continue
        demand(magic == 0xFD2FB528, f"no frame begins at {offset}")
        single, field = (flags := number(1)) >> 5 & 1, flags >> 6
        # A checksum and a content size; no dictionary, and nothing reserved.
        demand(flags & 15 == 4 and (single or field), f"the frame at {offset} is no bundle's")
        exact(file, 1 - single)  # the window
        content = number(1 << field) + (256 if field == 1 else 0)
        demand(content <= FRAME, f"the frame at {offset} holds too much")
        last = False
        while not last:
            last, kind, size = (block := number(3)) & 1, block >> 1 & 3, block >> 3
            demand(kind != 3 and size <= 128 << 10, f"the frame at {offset} has a foreign block")
            exact(file, 1 if kind == 1 else size)
        exact(file, 4)  # the checksum, which `zstd` looks at
        yield Frame(offset, file.tell() - offset, content)

def check_skippable(frames, volumes):
    """Checks what is no content; returns the frames of the head, whether it is signed, where the padding ends, and the
    frames with content behind that. `volumes` are the lengths of the files."""
    demand(frames and frames[-1].magic == 0x184D2A5E, "there is no seek table at the end")
    demand(all(frame.magic or frame.size <= frame.content + 1028 for frame in frames), "a frame is too large")
    frames, table, tail = frames[:-1], frames[-1].payload, frames[-1].size
    demand(len(frames) <= 8_388_606, "there are too many frames")
    rows = b"".join(struct.pack("<II", frame.size, frame.content) for frame in frames)
    demand(table == rows + struct.pack("<IBI", len(frames), 0, 0x8F92EAB1), "the seek table does not fit the frames")
    head = [frame.magic for frame in frames].index(0x184D2A50) if any(frame.magic for frame in frames) else 0
    signed = head > 0 and frames[head - 1].magic == 0x184D2A51
    demand(not signed or is_signature(frames[head - 1].payload), "the signature is none")
    padding, rest = frames[head], frames[head + 1 :]
    demand(not any(padding.payload), "there is something in the padding")
    head = frames[: head - signed]
    demand(not any(frame.magic for frame in head), "there is something else in the head")
    check_volumes(rest, volumes, padding.offset + padding.size)
    check_recovery(rest, volumes, tail)
    demand(all(frame.magic in (None, 0x184D2A52, 0x184D2A53) for frame in rest), "there is a foreign skippable frame")
    return head, signed, padding.offset + padding.size, [frame for frame in rest if not frame.magic]

def check_volumes(frames, volumes, first):
    """The labels are those of these volumes."""
    labels = [frame for frame in frames if frame.magic == 0x184D2A53]
    demand(len(labels) == len(volumes) or (len(volumes), labels) == (1, []), "there is not one label a volume")
    starts = [sum(volumes[:number]) for number in range(len(volumes))]
    sets = set()
    for number, (label, start) in enumerate(zip(labels, starts), 1):
        demand(label.offset == (start or first) and len(label.payload) <= 1024, f"the label {number} is misplaced")
        found = json.loads(label.payload)
        stream = sum(frame.content or 0 for frame in frames if frame.offset < label.offset)
        sets.add(found.pop("set"))
        expected = {"airbundleVolume": 1, "number": number, "offset": start, "stream": stream}
        demand(found == expected, f"the label {number} says something else")
    demand(len(sets) <= 1 and all(re.fullmatch(DIGEST, known) for known in sets), "the labels are of several bundles")

def check_recovery(frames, volumes, tail):
    """The recovery data of each volume has the form that it must have, for the length of what it protects."""
    found = [frame for frame in frames if frame.magic == 0x184D2A52]
    for number, length in enumerate(volumes):
        start, table = sum(volumes[:number]), tail if number == len(volumes) - 1 else 0
        section = [frame for frame in found if start <= frame.offset < start + length]
        demand(bool(section) == bool(found), "not every volume has recovery data")
        if not section:
            continue
        texts = [frame.payload for frame in section if frame.payload[:16] == b"airbundle repair"]
        demand(len(texts) == 3 and len(set(texts)) == 1, "there are not three descriptions, all the same")
        demand(section[0].payload == section[-1].payload == texts[0], "the descriptions are misplaced")
        version, block, front, size, behind, share, groups, spare, zero = struct.unpack("<IIQQQIIII", texts[0][16:64])
        demand((version, zero, behind) == (1, 0, table), "the description is of another volume")
        demand(front == section[0].offset - start and size == sum(frame.size for frame in section), "it is misplaced")
        demand(front + size + behind == length, "the description has other lengths")
        demand(hashlib.sha256(texts[0][:-32]).digest() == texts[0][-32:], "the description is damaged")
        protected = front + behind
        blocks, spares = -(-protected // block), groups * spare
        demand(len(texts[0]) == 104 + 8 * (blocks + spares), "the description has another length")
        right = 4096
        while protected > right * (1024 if right < 65536 else 524288):
            right *= 2
        most = max(
            rows for rows in range(1, 2048)
            if rows + (1 << (-(-rows * share // 1000) + 1).bit_length()) <= min(2048, (128 << 20) // right)
        )
        rows = -(-blocks // groups)
        wanted = right, max(1, -(-blocks // most)), -(-rows * share // 1000) + 2
        demand((block, groups, spare) == wanted, "the description has other numbers")
        halves = 1 + (protected * (share + 67) // 1000) // (1 << 24)
        demand(len(section) == 3 + 2 * halves, "the recovery blocks are cut otherwise")

def is_signature(text):
    line = r"[A-Za-z0-9+/]+={0,2}\n"
    form = f"untrusted comment: [^\n]*\n(?P<one>{line})trusted comment: [^\n]*\n(?P<all>{line})"
    found = re.fullmatch(form, text.decode()) if len(text) <= 1016 else None
    one, whole = (base64.b64decode(found[name]) for name in ("one", "all")) if found else (b"", b"")
    return one[:2] == b"ED" and (len(one), len(whole)) == (74, 64)

def padded(size):
    return -(-size // BLOCK) * BLOCK

def pieces(length):
    return [FRAME] * (length // FRAME) + [length % FRAME] * (length % FRAME > 0)

def cuts(manifests, others):
    """What the frames behind the head hold, from the lengths of the entries; and whether a frame must be stored."""
    for entries in manifests, [*others, 2 * BLOCK]:
        shared = 0
        for length in entries:
            if shared and shared + length > FRAME:
                yield shared, False
                shared = 0
            if length > FRAME:
                yield from [(BLOCK, True), *((piece, False) for piece in pieces(length - BLOCK))]
            else:
                shared += length
        if shared:
            yield shared, False

def header(digest, size):
    name = digest.replace("sha256:", "blobs/sha256/").encode()
    size = b"%011o\0" % size if size < 8 << 30 else b"\x80\0\0\0" + size.to_bytes(8, "big")
    head = name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size + b"00000000000\0"
    tail = b"0" + bytes(100) + b"ustar\0" + b"00" + bytes(32 + 32 + 8 + 8 + 155 + 12)
    return head + b"%07o\0" % sum(head + b" " * 8 + tail) + tail

def read_entry(stream, name, size=None, keep=None):
    """Reads the next entry, which must be this one; returns its digest and, of one that is to be kept, its content."""
    found = exact(stream, BLOCK)
    if size is None:  # index.json: only its header says it
        size = int(found[124:135], 8) if re.fullmatch(rb"[0-7]{11}\0", found[124:136]) else 0
    demand(found == header(name, size), f"where `{name}` belongs, there is another header")
    demand(keep is None or size <= keep, f"`{name}` is too large")
    hashed, content, left = hashlib.sha256(), [], size
    while left:
        hashed.update(data := exact(stream, min(left, MIB)))
        left -= len(data)
        content += [data] if keep else []
    demand(not any(exact(stream, padded(size) - size)), f"there is something behind `{name}`")
    digest = "sha256:" + hashed.hexdigest()
    demand(name in (digest, "oci-layout", "index.json"), f"`{name}` has other bytes")
    return digest, b"".join(content)

def parse(data, what):
    def members(pairs):
        names = [name for name, _ in pairs if name in MEMBERS]
        demand(len(names) == len(set(names)), f"{what} has a member twice")
        return dict(pairs)
    try:
        document = json.loads(data.decode(), object_pairs_hook=members)
    except ValueError as error:
        sys.exit(f"{what} is no JSON: {error}")
    demand(isinstance(document, dict) and type(document.get("schemaVersion")) is int, f"{what}: no `schemaVersion`")
    return document

def dump(document):
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()

def descriptors(values, what):
    demand(isinstance(values, list), f"{what} lacks what it is to name")
    for value in values:
        demand(isinstance(value, dict) and isinstance(value.get("mediaType"), str), f"{what}: no media type")
        demand(re.fullmatch(DIGEST, str(value.get("digest"))), f"{what}: no digest")
        demand(type(value.get("size")) is int and 0 <= value["size"] <= 1 << 53, f"{what}: no size")
    return values

def check_ours(document, data, entries, what):
    demand(data == dump(document), f"{what} has white space, or escapes what needs none")
    for value in [document, *entries]:
        members, notes = [name for name in value if name in MEMBERS], value.get("annotations", {})
        demand(members == sorted(members, key=MEMBERS.index), f"{what} has its members in another order")
        demand(list(notes) == sorted(notes, key=str.encode), f"{what}: the annotations are not sorted")
        demand("dev.airbundle.encoding" not in notes, f"{what} has an encoding, and this program knows none")

def check_image(image):
    notes = image.get("annotations", {})
    name, omitted = notes.get("org.opencontainers.image.ref.name", ""), notes.get("dev.airbundle.omitted", "").split()
    match = REFERENCE.fullmatch(name)
    demand(match and int(match["port"] or 1) <= 65535, f"`{name}` is no reference")
    demand(max(len(match["host"]), len(match["repository"])) <= 255, f"`{name}` is too long")
    demand(notes.get("io.containerd.image.name") == name, f"`{name}` has another name for containerd")
    demand(image.get("artifactType") != FILE_SET, "there is a file set that is not the first entry")
    sound = omitted == sorted(set(omitted)) and all(re.fullmatch(DIGEST, digest) for digest in omitted)
    demand(sound, f"`{name}` omits something else than sorted digests")
    platforms = notes.get("dev.airbundle.platforms", "").split()
    sound = all(re.fullmatch(r"[a-z0-9._-]+(/[a-z0-9._-]+){1,2}", platform) for platform in platforms)
    demand(sound, f"`{name}` was asked for what is no platform")
    return name, image, omitted

def read_index(data):
    document = parse(data, "index.json")
    notes = document.get("annotations", {})
    demand(re.fullmatch(r"1\.[0-9]+", notes.get("dev.airbundle.format", "")), "it has another format version")
    demand(set(notes.get("dev.airbundle.requires", "").split()) <= {"base"}, "it requires what this program does not know")
    elsewhere = notes.get("dev.airbundle.elsewhere", "").split()
    sound = elsewhere == sorted(set(elsewhere)) and all(re.fullmatch(DIGEST, digest) for digest in elsewhere)
    demand(sound, "something else than sorted digests is elsewhere")
    demand(bool(elsewhere) == ("dev.airbundle.requires" in notes), "a delta and what it requires do not go together")
    entries = list(descriptors(document.get("manifests"), "index.json"))
    check_ours(document, data, entries, "index.json")
    file_set = entries.pop(0) if entries and entries[0].get("artifactType") == FILE_SET else None
    images = [check_image(image) for image in entries]
    names = [name for name, _, _ in images]
    newer = {"dev.airbundle.platforms", "dev.airbundle.made"}
    is_newer = bool(elsewhere) or any(newer & set(entry.get("annotations", {})) for entry in entries)
    demand(notes["dev.airbundle.format"] == ("1.1" if is_newer else "1.0"), "its documents are of another version")
    demand(names == sorted(set(names), key=str.encode), "the images are not sorted, or not different")
    return document, file_set, images, set(elsewhere)

def read_file_set(data, what="the file set"):
    document = parse(data, what)
    files, [config] = descriptors(document.get("layers"), what), descriptors([document.get("config")], what)
    check_ours(document, data, [config, *files], what)
    is_empty = config["digest"] == "sha256:" + hashlib.sha256(b"{}").hexdigest()
    demand(document.get("artifactType") == FILE_SET and is_empty, "the file set is something else")
    paths = [file.get("annotations", {}).get("org.opencontainers.image.title", "") for file in files]
    for path in paths:
        sound = all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in path.split("/"))
        sound &= len(path.encode()) <= 4000 and not re.search(r"[\\\0-\x1f\x7f-\x9f]", path)
        demand(sound, f"{path!r} is no path")
    demand(paths == sorted(paths, key=str.encode), "the files are not sorted")
    nfc = lambda text: unicodedata.normalize("NFC", text)
    cased = lambda text: "".join(letter.lower() for letter in "".join(letter.upper() for letter in text))
    keys = [nfc(cased(nfc(path))) for path in paths]
    folders = {key[:at] for key in keys for at, letter in enumerate(key) if letter == "/"}
    demand(len(set(keys)) == len(keys) and not folders & set(keys), "there are paths that collide")
    return document, files

def read_manifest(media_type, data, digest):
    """What it names: its children, or its config and layers."""
    document = parse(data, digest)
    demand(document["schemaVersion"] != 1, f"{digest} is of schema 1")
    demand(document.get("mediaType", media_type) == media_type, f"{digest} is announced as something else")
    demand("manifests" not in document or not {"layers", "config"} & set(document), f"{digest} is two things at once")
    if media_type in INDEXES:
        return descriptors(document.get("manifests"), digest)
    return descriptors([document.get("config")], digest) + descriptors(document.get("layers"), digest)

class Bundle:
    def __init__(self, stream):
        self.stream, self.manifests, self.named, self.sizes, self.held = stream, {}, 0, {}, []
        layout = b'{"imageLayoutVersion":"1.0.0"}'
        demand(read_entry(stream, "oci-layout", 30, 30)[1] == layout, "`oci-layout` has another content")
        self.identity, data = read_entry(stream, "index.json", keep=64 * MIB)
        self.index, entry, self.images, self.elsewhere = read_index(data)
        self.head, self.file_set, self.files = [30, len(data)], None, []
        if entry:
            demand(entry["mediaType"] == OCI_MANIFEST, "the file set is no manifest")
            self.file_set, self.files = read_file_set(self.read_document(entry, 64 * MIB))
            self.manifests[entry["digest"]], self.named = None, 1
            self.head.append(entry["size"])
        for _, image, omitted in self.images:
            self.held.append({})
            self.visit(image, 1, omitted)
        self.others = self.read_others()
        demand(not any(exact(stream, 2 * BLOCK)) and not stream.read(1), "there is no end where the end belongs")
        demand(max(len(self.sizes), self.named) <= MIB and sum(self.sizes.values()) <= 1 << 53, "it holds too much")

    def note(self, named):
        size = self.sizes.setdefault(named["digest"], named["size"])
        demand(size == named["size"], f"`{named['digest']}` has two sizes")

    def read_document(self, entry, limit):
        self.note(entry)
        demand(entry["size"] + sum(map(self.sizes.get, self.manifests)) <= 64 * MIB, "the manifests are too large")
        return read_entry(self.stream, entry["digest"], entry["size"], limit)[1]

    def visit(self, named, indexes, omitted):
        """Reads a manifest of the last image, and those below it."""
        self.note(named)
        digest, media_type = named["digest"], named["mediaType"]
        if digest in self.held[-1]:
            return
        demand(media_type in KINDS, f"`{media_type}` is no manifest's media type")
        if digest not in self.manifests:
            self.manifests[digest] = read_manifest(media_type, self.read_document(named, 4 * MIB), digest)
        names, is_index = self.manifests[digest], media_type in INDEXES
        demand(names is not None, "the file set is an image, too")
        self.named += 1 + len(names)
        self.held[-1][digest] = [] if is_index else names
        demand(not is_index or indexes <= 7, "there are indexes that are nested too deep")
        for child in names if is_index else []:
            if child["digest"] not in omitted:
                self.visit(child, indexes + 1, omitted)

    def read_others(self):
        images = [blobs for held in self.held for blobs in held.values()]
        order = [self.file_set["config"]] if self.file_set else []
        order += [blob for blobs in images for blob in blobs[:1]] + [blob for blobs in images for blob in blobs[1:]]
        for blob in order + self.files:
            self.note(blob)
        others = dict.fromkeys(blob["digest"] for blob in order + self.files if blob["digest"] not in self.manifests)
        demand(self.elsewhere <= set(others), "something is elsewhere that is no config, layer or file")
        for digest in self.elsewhere:
            others.pop(digest)
        for digest in others:
            read_entry(self.stream, digest, self.sizes[digest])
        return list(others)

    def summary(self):
        images, files = [], []
        for (name, image, omitted), held in zip(self.images, self.held):
            digests = {*held, *(blob["digest"] for blobs in held.values() for blob in blobs)}
            about = {"reference": name, "digest": image["digest"], "mediaType": image["mediaType"], "omitted": omitted}
            images.append({**about, "size": sum(map(self.sizes.get, digests))})
        for file in self.files:
            path, url = map(file["annotations"].get, ("org.opencontainers.image.title", "dev.airbundle.source-url"))
            files.append({"path": path, "sha256": file["digest"][7:], "size": file["size"], "url": url})
        blobs, elsewhere = [*self.manifests, *self.others], sorted(self.elsewhere)
        return {"identity": self.identity, "images": images, "files": files, "blobs": blobs, "elsewhere": elsewhere}

    def check_frames(self, head, signed, end, body):
        """The frames are cut where a writer cuts them, and the head has its room."""
        length = lambda size: BLOCK + padded(size)
        demand([frame.content for frame in head] == pieces(sum(map(length, self.head))), "the head is cut otherwise")
        manifests = list(self.manifests)[len(self.head) - 2 :]
        expected = list(cuts(*([length(self.sizes[digest]) for digest in blobs] for blobs in (manifests, self.others))))
        demand([frame.content for frame in body] == [content for content, _ in expected], "it is cut otherwise")
        headers = (frame for frame, (_, stored) in zip(body, expected) if stored)
        demand(all(frame.size == 9 + 3 + BLOCK + 4 for frame in headers), "there is a header that is not stored")
        for entry in self.files + self.index["manifests"][: len(self.head) - 2]:
            entry["size"] = 10**19
        documents = map(dump, [self.index, self.file_set][: len(self.head) - 1])
        stream = length(30) + sum(length(len(document)) for document in documents)
        room = padded(stream + 109 * len(pieces(stream)) + 8) + 1024 * signed
        demand(end == room, f"the head has room for {end} bytes, and not {room}")

if __name__ == "__main__":
    volumes = [os.path.getsize(path) for path in sys.argv[1:]]
    with tempfile.TemporaryFile() as joined:
        for path in sys.argv[1:]:
            with open(path, "rb") as volume:
                shutil.copyfileobj(volume, joined)
        joined.seek(0)
        with open(joined.fileno(), "rb", closefd=False) as bundle:
            head, signed, end, body = check_skippable(list(read_frames(bundle)), volumes)
        joined.seek(0)
        zstd = subprocess.Popen(["zstd", "-dcq"], stdin=joined, stdout=subprocess.PIPE)
    bundle = Bundle(zstd.stdout)
    demand(zstd.wait() == 0, "zstd refuses it")
    summary = bundle.summary()
    bundle.check_frames(head, signed, end, body)
    print(json.dumps(summary, indent=2, ensure_ascii=False))
