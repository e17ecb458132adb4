#!/usr/bin/env python3
"""A second implementation of a bundle reader, written from bundle-format.md alone.

Usage: second-reader.py BUNDLE
       second-reader.py VOLUME...

Checks all requirements of bundle-format.md for writers and readers. If the bundle is valid, prints its content as JSON.
Otherwise prints an error and exits with status 1. Requires Python 3.8 and `zstd`."""
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
    r"(?=[^/]*[.:]|localhost/)"  # the first component is a host
    r"(?!docker\.io/[^/]*$|(?:index|registry-1)\.docker\.io/)"  # Docker Hub has one canonical form
    rf"(?P<host>(?:{LABEL}(?:\.{LABEL})*|\[[0-9a-f:.]+\])(?::(?P<port>[1-9][0-9]*))?)"
    rf"/(?P<repository>{WORD}(?:(?:/|\.|__?|-+){WORD})*)"
    rf"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}}(?:@{DIGEST})?|@{DIGEST})"
)
NAME, TOKEN = "[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}", r"[A-Za-z0-9!#$%&'*+.^_`|~-]"
PARAMETER = rf' *;[ ]*{TOKEN}{{1,127}}=(?:{TOKEN}{{1,127}}|"[ !#-\[\]-~]{{0,125}}") *'
MEDIA_TYPE = re.compile(rf"(?=.{{1,1024}}$){NAME}/{NAME}(?:{PARAMETER})*")
URL = re.compile(
    r"(?=.{1,16384}$)https?://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]{1,255})(?::[0-9]{1,5})?"
    r"(?:[/?](?:(?![\"<>#])[!-~])*)?"
)
CONTROL = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
TIME = r"[0-9]{4}-[01][0-9]-[0-3][0-9][Tt][0-2][0-9]:[0-5][0-9]:[0-6][0-9](\.[0-9]+)?([Zz]|[+-][0-2][0-9]:[0-5][0-9])"
CONFIGS = {"application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"}
Frame = namedtuple("Frame", "offset size content magic payload", defaults=(0, None, b""))

def check(condition, message):
    condition or sys.exit(message)

def exact(source, length):
    data = source.read(length)
    check(len(data) == length, "unexpected end of the bundle")
    return data

def read_frames(file):
    """Yields all frames of the file, without decoding them."""
    number = lambda length: int.from_bytes(exact(file, length), "little")
    while file.peek(1):
        offset, magic = file.tell(), number(4)
        if 0x184D2A50 <= magic <= 0x184D2A5F:
            check((length := number(4)) <= 64 * MIB, f"skippable frame at {offset}: too large")
            yield Frame(offset, 8 + length, magic=magic, payload=exact(file, length))
            continue
        check(magic == 0xFD2FB528, f"no frame starts at {offset}")
        single, field = (flags := number(1)) >> 5 & 1, flags >> 6
        # Requires a checksum and a content size. Refuses a dictionary and reserved bits.
        check(flags & 15 == 4 and (single or field), f"frame at {offset}: invalid frame header")
        exact(file, 1 - single)  # window descriptor
        content = number(1 << field) + (256 if field == 1 else 0)
        check(content <= FRAME, f"frame at {offset}: content too large")
        last = False
        while not last:
            last, kind, size = (block := number(3)) & 1, block >> 1 & 3, block >> 3
            check(kind != 3 and size <= 128 << 10, f"frame at {offset}: invalid block")
            exact(file, 1 if kind == 1 else size)
        exact(file, 4)  # checksum, verified by `zstd`
        yield Frame(offset, file.tell() - offset, content)

def check_skippable(frames, volumes):
    """Checks the skippable frames. Returns the frames of the head, whether the bundle is signed, the end of the
    padding, and the zstd frames after it. `volumes` are the sizes of the files."""
    check(frames and frames[-1].magic == 0x184D2A5E, "no seek table at the end")
    check(all(frame.magic or frame.size <= frame.content + 1028 for frame in frames), "frame too large")
    frames, table, tail = frames[:-1], frames[-1].payload, frames[-1].size
    check(len(frames) <= 8_388_606, "too many frames")
    rows = b"".join(struct.pack("<II", frame.size, frame.content) for frame in frames)
    check(table == rows + struct.pack("<IBI", len(frames), 0, 0x8F92EAB1), "the seek table does not match the frames")
    head = [frame.magic for frame in frames].index(0x184D2A50) if any(frame.magic for frame in frames) else 0
    signed = head > 0 and frames[head - 1].magic == 0x184D2A51
    check(not signed or is_signature(frames[head - 1].payload), "invalid signature frame")
    padding, rest = frames[head], frames[head + 1 :]
    check(not any(padding.payload), "the padding is not all zeros")
    head = frames[: head - signed]
    check(not any(frame.magic for frame in head), "unexpected skippable frame in the head")
    check_volumes(rest, volumes, padding.offset + padding.size)
    check_recovery(rest, volumes, tail)
    check(all(frame.magic in (None, 0x184D2A52, 0x184D2A53) for frame in rest), "unexpected skippable frame")
    return head, signed, padding.offset + padding.size, [frame for frame in rest if not frame.magic]

def check_volumes(frames, volumes, first):
    """Checks that the labels match the volumes."""
    labels = [frame for frame in frames if frame.magic == 0x184D2A53]
    check(len(labels) == len(volumes) or (len(volumes), labels) == (1, []), "expected one label per volume")
    starts = [sum(volumes[:number]) for number in range(len(volumes))]
    sets = set()
    for number, (label, start) in enumerate(zip(labels, starts), 1):
        check(label.offset == (start or first) and len(label.payload) <= 1024, f"label {number}: invalid frame")
        found = json.loads(label.payload)
        stream = sum(frame.content or 0 for frame in frames if frame.offset < label.offset)
        sets.add(found.pop("set"))
        expected = {"airbundleVolume": 1, "number": number, "offset": start, "stream": stream}
        check(found == expected, f"label {number}: does not match the volume")
    check(len(sets) <= 1 and all(re.fullmatch(DIGEST, known) for known in sets), "labels of different volume sets")

def check_recovery(frames, volumes, tail):
    """Checks that each volume has recovery data with the required geometry and layout."""
    found = [frame for frame in frames if frame.magic == 0x184D2A52]
    for number, length in enumerate(volumes):
        start, table = sum(volumes[:number]), tail if number == len(volumes) - 1 else 0
        section = [frame for frame in found if start <= frame.offset < start + length]
        check(bool(section) == bool(found), "not all volumes have recovery data")
        if not section:
            continue
        texts = [frame.payload for frame in section if frame.payload[:16] == b"airbundle repair"]
        check(len(texts) == 3 and len(set(texts)) == 1, "expected three identical descriptions")
        check(section[0].payload == section[-1].payload == texts[0], "descriptions at unexpected positions")
        numbers = struct.unpack("<IIQQQIIII", texts[0][16:64])
        version, block, front, size, back, per_mille, groups, parity, zero = numbers
        check((version, zero, back) == (1, 0, table), "the description does not match the volume")
        check(front == section[0].offset - start and size == sum(frame.size for frame in section), "unexpected section")
        check(front + size + back == length, "lengths in the description do not match the volume")
        check(hashlib.sha256(texts[0][:-32]).digest() == texts[0][-32:], "corrupt description: SHA-256 mismatch")
        protected = front + back
        blocks, parity_blocks = -(-protected // block), groups * parity
        check(len(texts[0]) == 104 + 8 * (blocks + parity_blocks), "unexpected length of the description")
        smallest = 4096
        while protected > smallest * (1024 if smallest < 65536 else 524288):
            smallest *= 2
        most = max(
            rows for rows in range(1, 2048)
            if rows + (1 << (-(-rows * per_mille // 1000) + 1).bit_length()) <= min(2048, (128 << 20) // smallest)
        )
        rows = -(-blocks // groups)
        expected = smallest, max(1, -(-blocks // most)), -(-rows * per_mille // 1000) + 2
        check((block, groups, parity) == expected, "unexpected geometry in the description")
        halves = 1 + (protected * (per_mille + 67) // 1000) // (1 << 24)
        check(len(section) == 3 + 2 * halves, "unexpected frame boundaries of the parity blocks")

def is_signature(text):
    line = r"[A-Za-z0-9+/]+={0,2}\n"
    form = f"untrusted comment: [^\n]*\n(?P<one>{line})trusted comment: [^\n]*\n(?P<two>{line})"
    found = re.fullmatch(form, text.decode()) if len(text) <= 1016 else None
    one, two = (base64.b64decode(found[name]) for name in ("one", "two")) if found else (b"", b"")
    return one[:2] == b"ED" and (len(one), len(two)) == (74, 64)

def padded(size):
    return -(-size // BLOCK) * BLOCK

def pieces(length):
    return [FRAME] * (length // FRAME) + [length % FRAME] * (length % FRAME > 0)

def cuts(manifests, others):
    """Yields the content size of each frame after the head, and whether the frame must be stored."""
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
    """Reads the next entry, which must have this name. Returns its digest and, with `keep`, its content."""
    found = exact(stream, BLOCK)
    if size is None:  # index.json: the size is known from its header only
        size = int(found[124:135], 8) if re.fullmatch(rb"[0-7]{11}\0", found[124:136]) else 0
    check(found == header(name, size), f"`{name}`: unexpected tar header")
    check(keep is None or size <= keep, f"`{name}`: too large")
    hashed, content, left = hashlib.sha256(), [], size
    while left:
        hashed.update(data := exact(stream, min(left, MIB)))
        left -= len(data)
        content += [data] if keep else []
    check(not any(exact(stream, padded(size) - size)), f"`{name}`: not followed by zeros")
    digest = "sha256:" + hashed.hexdigest()
    check(name in (digest, "oci-layout", "index.json"), f"`{name}`: digest mismatch, got {digest}")
    return digest, b"".join(content)

def parse(data, what):
    def members(pairs):
        names = [name for name, _ in pairs if name in MEMBERS]
        check(len(names) == len(set(names)), f"{what}: duplicate member")
        return dict(pairs)
    try:
        document = json.loads(data.decode(), object_pairs_hook=members)
    except ValueError as error:
        sys.exit(f"{what}: invalid JSON: {error}")
    check(isinstance(document, dict) and type(document.get("schemaVersion")) is int, f"{what}: missing `schemaVersion`")
    return document

def dump(document):
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()

def check_platform(platform, what):
    """Checks a platform: of a descriptor, or the members of an image config."""
    for name in "os", "architecture", "variant":
        value = platform.get(name) or ""
        check(isinstance(value, str) and re.fullmatch("[A-Za-z0-9._-]{0,128}", value), f"{what}: invalid `{name}`")

def check_config(data, what):
    try:
        config = json.loads(data)
    except ValueError:
        return
    values = [config.get(name, "") for name in ("os", "architecture")] if isinstance(config, dict) else [None]
    if all(isinstance(value, str) for value in values) and isinstance(config.get("variant", ""), (str, type(None))):
        check_platform(config, what)

def descriptors(values, what):
    check(isinstance(values, list), f"{what}: missing descriptors")
    for value in values:
        check(isinstance(value, dict) and isinstance(value.get("mediaType"), str), f"{what}: missing `mediaType`")
        check(MEDIA_TYPE.fullmatch(value["mediaType"]), f"{what}: invalid media type")
        check(re.fullmatch(DIGEST, str(value.get("digest"))), f"{what}: invalid digest")
        check_platform(value.get("platform") or {}, what)
        check(type(value.get("size")) is int and 0 <= value["size"] <= 1 << 53, f"{what}: invalid size")
    return values

def check_ours(document, data, entries, what):
    check(data == dump(document), f"{what}: not in canonical JSON form")
    for value in [document, *entries]:
        members, notes = [name for name in value if name in MEMBERS], value.get("annotations", {})
        check(members == sorted(members, key=MEMBERS.index), f"{what}: unexpected order of members")
        check(list(notes) == sorted(notes, key=str.encode), f"{what}: annotations not sorted")
        check("dev.airbundle.encoding" not in notes, f"{what}: unknown encoding")

def check_image(image):
    notes = image.get("annotations", {})
    name, omitted = notes.get("org.opencontainers.image.ref.name", ""), notes.get("dev.airbundle.omitted", "").split()
    match = REFERENCE.fullmatch(name)
    check(match and int(match["port"] or 1) <= 65535, f"`{name}`: invalid reference")
    check(max(len(match["host"]), len(match["repository"])) <= 255, f"`{name}`: too long")
    # Since 1.3, without the tag if there is a digest; before, the reference itself.
    _, at, digest = name.partition("@")
    known = (name, f"{match['host']}/{match['repository']}@{digest}" if at else name)
    check(notes.get("io.containerd.image.name") in known, f"`{name}`: mismatch with `io.containerd.image.name`")
    check(image.get("artifactType") != FILE_SET, "the file set is not the first entry")
    valid = omitted == sorted(set(omitted)) and all(re.fullmatch(DIGEST, digest) for digest in omitted)
    check(valid, f"`{name}`: `dev.airbundle.omitted` is not a sorted list of digests")
    platforms = notes.get("dev.airbundle.platforms", "").split()
    valid = all(re.fullmatch(r"[a-z0-9._-]+(/[a-z0-9._-]+){1,2}", platform) for platform in platforms)
    check(valid, f"`{name}`: invalid platform in `dev.airbundle.platforms`")
    return name, image, omitted

def check_release(notes):
    """Checks name, sequence number and expiry date. Returns whether there is one of them."""
    name, sequence, expires = (notes.get("dev.airbundle." + key) for key in ("name", "sequence", "expires"))
    check((name is None) == (sequence is None), "a name and a sequence number require each other")
    if name is not None:
        check(len(name) <= 128 and re.fullmatch("[a-z0-9]+([._-][a-z0-9]+)*", name), "invalid name of the bundle")
        check(re.fullmatch("[1-9][0-9]{0,15}", sequence) and int(sequence) < 1 << 53, "invalid sequence number")
    if expires is not None:
        time = r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z"
        check(re.fullmatch(time, expires), "invalid expiry date")
    return not (name is expires is None)

def read_index(data):
    document = parse(data, "index.json")
    notes = document.get("annotations", {})
    check(re.fullmatch(r"1\.[0-9]+", notes.get("dev.airbundle.format", "")), "unsupported format version")
    check(set(notes.get("dev.airbundle.requires", "").split()) <= {"base"}, "unsupported `dev.airbundle.requires`")
    title, created = (notes.get(f"org.opencontainers.image.{name}") for name in ("title", "created"))
    check(not title or len(title.encode()) <= 4096 and not CONTROL.search(title), "invalid title")
    check(created is None or re.fullmatch(TIME, created), "invalid time")
    elsewhere = notes.get("dev.airbundle.elsewhere", "").split()
    valid = elsewhere == sorted(set(elsewhere)) and all(re.fullmatch(DIGEST, digest) for digest in elsewhere)
    check(valid, "`dev.airbundle.elsewhere` is not a sorted list of digests")
    check(bool(elsewhere) == ("dev.airbundle.requires" in notes), "a delta must require `base`")
    entries = list(descriptors(document.get("manifests"), "index.json"))
    check_ours(document, data, entries, "index.json")
    file_set = entries.pop(0) if entries and entries[0].get("artifactType") == FILE_SET else None
    images = [check_image(image) for image in entries]
    names = [name for name, _, _ in images]
    newer = {"dev.airbundle.platforms", "dev.airbundle.made"}
    is_newer = bool(elsewhere) or any(newer & set(entry.get("annotations", {})) for entry in entries)
    has_two_names = any(re.search(r":[^/:@]+@", name) for name in names)
    version = "1.2" if check_release(notes) else "1.1" if is_newer else "1.0"
    version = "1.3" if has_two_names else version
    check(notes["dev.airbundle.format"] == version, "format version mismatch")
    check(names == sorted(set(names), key=str.encode), "references not sorted or not unique")
    return document, file_set, images, set(elsewhere)

def read_file_set(data, what="the file set"):
    document = parse(data, what)
    files, [config] = descriptors(document.get("layers"), what), descriptors([document.get("config")], what)
    check_ours(document, data, [config, *files], what)
    is_empty = config["digest"] == "sha256:" + hashlib.sha256(b"{}").hexdigest()
    check(document.get("artifactType") == FILE_SET and is_empty, "invalid file set")
    paths = [file.get("annotations", {}).get("org.opencontainers.image.title", "") for file in files]
    for path in paths:
        valid = all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in path.split("/"))
        valid &= len(path.encode()) <= 4000 and "\\" not in path and not CONTROL.search(path)
        check(valid, f"{path!r}: invalid path")
    urls = [file["annotations"].get("dev.airbundle.source-url", "") for file in files]
    check(all(not url or URL.fullmatch(url) for url in urls), "invalid `dev.airbundle.source-url`")
    check(paths == sorted(paths, key=str.encode), "files not sorted")
    nfc = lambda text: unicodedata.normalize("NFC", text)
    cased = lambda text: "".join(letter.lower() for letter in "".join(letter.upper() for letter in text))
    keys = [nfc(cased(nfc(path))) for path in paths]
    parents = {key[:at] for key in keys for at, letter in enumerate(key) if letter == "/"}
    check(len(set(keys)) == len(keys) and not parents & set(keys), "colliding paths")
    return document, files

def read_manifest(media_type, data, digest):
    """Returns the descriptors in a manifest: the children of an index, or config and layers."""
    document = parse(data, digest)
    check(document["schemaVersion"] != 1, f"{digest}: Docker schema 1 is not supported")
    check(document.get("mediaType", media_type) == media_type, f"{digest}: media type mismatch with the descriptor")
    check("manifests" not in document or not {"layers", "config"} & set(document), f"{digest}: ambiguous document")
    if media_type in INDEXES:
        return descriptors(document.get("manifests"), digest)
    return descriptors([document.get("config")], digest) + descriptors(document.get("layers"), digest)

class Bundle:
    def __init__(self, stream):
        self.stream, self.manifests, self.named, self.sizes, self.held = stream, {}, 0, {}, []
        layout = b'{"imageLayoutVersion":"1.0.0"}'
        check(read_entry(stream, "oci-layout", 30, 30)[1] == layout, "`oci-layout`: unexpected content")
        self.identity, data = read_entry(stream, "index.json", keep=64 * MIB)
        self.index, entry, self.images, self.elsewhere = read_index(data)
        self.head, self.file_set, self.files = [30, len(data)], None, []
        if entry:
            check(entry["mediaType"] == OCI_MANIFEST, "unexpected media type of the file set")
            self.file_set, self.files = read_file_set(self.read_document(entry, 64 * MIB))
            self.manifests[entry["digest"]], self.named = None, 1
            self.head.append(entry["size"])
        for _, image, omitted in self.images:
            self.held.append({})
            self.visit(image, 1, omitted)
        self.others = self.read_others()
        check(not any(exact(stream, 2 * BLOCK)) and not stream.read(1), "no end of archive after the last entry")
        check(max(len(self.sizes), self.named) <= MIB and sum(self.sizes.values()) <= 1 << 53, "limit exceeded")

    def note(self, named):
        size = self.sizes.setdefault(named["digest"], named["size"])
        check(size == named["size"], f"`{named['digest']}`: two different sizes")

    def read_document(self, entry, limit):
        self.note(entry)
        check(entry["size"] + sum(map(self.sizes.get, self.manifests)) <= 64 * MIB, "total size of manifests too large")
        return read_entry(self.stream, entry["digest"], entry["size"], limit)[1]

    def visit(self, named, indexes, omitted):
        """Reads a manifest of the current image, and its children."""
        self.note(named)
        digest, media_type = named["digest"], named["mediaType"]
        if digest in self.held[-1]:
            return
        check(media_type in KINDS, f"`{media_type}`: unsupported media type of a manifest")
        if digest not in self.manifests:
            self.manifests[digest] = read_manifest(media_type, self.read_document(named, 4 * MIB), digest)
        names, is_index = self.manifests[digest], media_type in INDEXES
        check(names is not None, "the file set is also an image")
        self.named += 1 + len(names)
        self.held[-1][digest] = [] if is_index else names
        check(not is_index or indexes <= 7, "indexes nested too deeply")
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
        check(self.elsewhere <= set(others), "a delta omits an unknown blob")
        for digest in self.elsewhere:
            others.pop(digest)
        platforms = set()  # configs of images without an index
        for (_, image, _), held in zip(self.images, self.held):
            configs = held[image["digest"]][:1] if image["mediaType"] not in INDEXES else []
            platforms |= {blob["digest"] for blob in configs if blob["mediaType"] in CONFIGS}
        for digest in others:
            is_config = digest in platforms and self.sizes[digest] <= 4 * MIB
            _, data = read_entry(self.stream, digest, self.sizes[digest], 4 * MIB if is_config else None)
            check_config(data, digest) if is_config else None
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
        """Checks the frame boundaries and the reserved header space."""
        length = lambda size: BLOCK + padded(size)
        check([frame.content for frame in head] == pieces(sum(map(length, self.head))), "unexpected frames in the head")
        manifests = list(self.manifests)[len(self.head) - 2 :]
        expected = list(cuts(*([length(self.sizes[digest]) for digest in blobs] for blobs in (manifests, self.others))))
        check([frame.content for frame in body] == [content for content, _ in expected], "unexpected frame boundaries")
        headers = (frame for frame, (_, stored) in zip(body, expected) if stored)
        check(all(frame.size == 9 + 3 + BLOCK + 4 for frame in headers), "a header frame is not stored")
        for entry in self.files + self.index["manifests"][: len(self.head) - 2]:
            entry["size"] = 10**19
        documents = map(dump, [self.index, self.file_set][: len(self.head) - 1])
        stream = length(30) + sum(length(len(document)) for document in documents)
        space = padded(stream + 109 * len(pieces(stream)) + 8) + 1024 * signed
        check(end == space, f"reserved header space: expected {space} bytes, got {end}")

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
    check(zstd.wait() == 0, "zstd cannot decode the bundle")
    summary = bundle.summary()
    bundle.check_frames(head, signed, end, body)
    print(json.dumps(summary, indent=2, ensure_ascii=False))
