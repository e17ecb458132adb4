//! `Input`: the bytes of a fuzzer as a sequence of numbers and texts, for targets that assemble what they read.

/// The rest of an input. After its end, numbers are 0 and texts are empty.
pub(super) struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Takes at most `len` bytes.
    pub(super) fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (bytes, rest) = self.rest.split_at(len.min(self.rest.len()));
        self.rest = rest;
        bytes
    }

    /// Takes a length of one byte and so many bytes.
    pub(super) fn short(&mut self) -> &'a [u8] {
        let len = self.byte();
        self.bytes(len.into())
    }

    /// Takes a text that ends with a zero byte.
    pub(super) fn line(&mut self) -> &'a [u8] {
        let len = self.rest.iter().position(|byte| *byte == 0).unwrap_or(self.rest.len());
        let line = self.bytes(len);
        self.bytes(1);
        line
    }

    pub(super) fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or_default()
    }

    /// Takes a number of two bytes.
    pub(super) fn number(&mut self) -> usize {
        usize::from(self.byte()) | usize::from(self.byte()) << 8
    }

    /// Takes a number below `limit`; 0 if that is 0.
    pub(super) fn below(&mut self, limit: usize) -> usize {
        let number = if limit > 1 << 16 { self.number() << 16 | self.number() } else { self.number() };
        number.checked_rem(limit).unwrap_or_default()
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}
