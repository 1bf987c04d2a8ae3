//! From pieces of a file to whole lines with a prefix. Pure.

/// Longest line that is kept together; a longer one is cut, so that a file without line feeds cannot fill the memory.
const MAX_LINE_BYTES: usize = 64 * 1024;

/// See the head of this file. Without a prefix bytes pass as they are, at once.
#[derive(Debug)]
pub(crate) struct Lines {
    prefix: String,
    pending: Vec<u8>,
}

impl Lines {
    /// With this text before each line.
    pub(crate) fn new(prefix: String) -> Self {
        Self {
            prefix,
            pending: Vec::new(),
        }
    }

    /// Lines that begin from now on have this prefix.
    pub(crate) fn set_prefix(&mut self, prefix: String) {
        self.prefix = prefix;
    }

    /// Takes the next piece; gives what can be printed now.
    pub(crate) fn push(&mut self, data: &[u8]) -> Vec<u8> {
        if self.prefix.is_empty() {
            return data.to_vec();
        }
        let mut ready = Vec::with_capacity(data.len() + self.prefix.len());
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            self.pending.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.pending.len() >= MAX_LINE_BYTES {
                self.take_line(&mut ready);
            }
        }
        ready
    }

    /// The file has ended: the last line, if it had no line feed.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        let mut ready = Vec::new();
        if !self.pending.is_empty() {
            self.take_line(&mut ready);
        }
        ready
    }

    fn take_line(&mut self, ready: &mut Vec<u8>) {
        ready.extend_from_slice(self.prefix.as_bytes());
        ready.append(&mut self.pending);
        if !ready.ends_with(b"\n") {
            ready.push(b'\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn pieces_become_lines() {
        let mut lines = Lines::new("[0] ".into());
        assert_eq!(text(lines.push(b"epoch 1")), "");
        assert_eq!(
            text(lines.push(b" done\nepoch 2\nep")),
            "[0] epoch 1 done\n[0] epoch 2\n"
        );
        assert_eq!(text(lines.finish()), "[0] ep\n");
        assert_eq!(text(lines.finish()), "");
    }

    #[test]
    fn without_a_prefix_nothing_is_held_back() {
        let mut lines = Lines::new(String::new());
        assert_eq!(text(lines.push(b"50%\r")), "50%\r");
        assert_eq!(text(lines.finish()), "");
    }

    #[test]
    fn an_endless_line_is_cut() {
        let mut lines = Lines::new("[0] ".into());
        let ready = lines.push(&vec![b'x'; MAX_LINE_BYTES + 1]);
        assert_eq!(ready.len(), MAX_LINE_BYTES + 1 + "[0] \n".len());
        assert!(lines.pending.is_empty());
    }
}
