//! Frames: a 4-byte big-endian length and JSON. Sans-IO: bytes in, frames out.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest body of a frame in bytes.
pub const MAX_FRAME: usize = 64 * 1024;
/// Length of the prefix in bytes.
pub const HEADER: usize = 4;

/// Why bytes are no frame, or a value cannot become one.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The prefix announces more than [`MAX_FRAME`]; nothing was allocated for it.
    #[error("frame of {length} bytes, at most {MAX_FRAME} are allowed")]
    TooLong {
        /// What was announced or made.
        length: usize,
    },
    /// A frame without a body.
    #[error("empty frame")]
    Empty,
    /// The body is not the JSON that was expected.
    #[error("malformed frame")]
    Json {
        /// What the parser says.
        source: serde_json::Error,
    },
}

/// Collects bytes and hands out frames. After an error it stays at that error: the connection is lost.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Where the next frame starts in `buffer`.
    start: usize,
}

impl Decoder {
    /// Takes bytes as they came. Feed at most some KiB at a time and drain with
    /// [`Decoder::next_frame`] in between: what is kept is then bounded by one frame.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete body, if there is one.
    ///
    /// # Errors
    /// When a prefix is out of range; the same error comes again then.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, CodecError> {
        let Some((prefix, rest)) = self.buffer[self.start..].split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let length = body_length(*prefix)?;
        if rest.len() < length {
            return Ok(None);
        }
        let body = self.start + HEADER;
        self.start = body + length;
        Ok(Some(&self.buffer[body..self.start]))
    }
}

/// Checks a prefix.
///
/// # Errors
/// When the length is zero or more than [`MAX_FRAME`].
pub(crate) fn body_length(prefix: [u8; HEADER]) -> Result<usize, CodecError> {
    let length = usize::try_from(u32::from_be_bytes(prefix)).unwrap_or(usize::MAX);
    match length {
        0 => Err(CodecError::Empty),
        1..=MAX_FRAME => Ok(length),
        _ => Err(CodecError::TooLong { length }),
    }
}

/// A value as a whole frame, prefix included.
///
/// # Errors
/// When the value is too long, or is no JSON.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    let mut frame = vec![0; HEADER];
    serde_json::to_writer(&mut frame, value).map_err(|source| CodecError::Json { source })?;
    let length = frame.len() - HEADER;
    let prefix = u32::try_from(length).ok().filter(|_| length <= MAX_FRAME);
    let prefix = prefix.ok_or(CodecError::TooLong { length })?;
    frame[..HEADER].copy_from_slice(&prefix.to_be_bytes());
    Ok(frame)
}

/// The value of a frame's body.
///
/// # Errors
/// When it is not the JSON of such a value.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, CodecError> {
    serde_json::from_slice(body).map_err(|source| CodecError::Json { source })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn framed(body: &[u8]) -> Vec<u8> {
        let mut frame = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
        frame.extend_from_slice(body);
        frame
    }

    #[test]
    fn an_absurd_length_is_refused_before_its_body() {
        let mut decoder = Decoder::default();
        decoder.push(&[0x7f, 0xff, 0xff, 0xff]);
        assert!(matches!(decoder.next_frame(), Err(CodecError::TooLong { length: 0x7fff_ffff })));
        decoder.push(&framed(b"{}"));
        assert!(decoder.next_frame().is_err(), "nothing behind a bad frame is believed");
        let mut decoder = Decoder::default();
        decoder.push(&[0; 4]);
        assert!(matches!(decoder.next_frame(), Err(CodecError::Empty)));
    }

    #[test]
    fn the_longest_frame_passes_and_one_more_byte_does_not() {
        let mut decoder = Decoder::default();
        decoder.push(&framed(&vec![b' '; MAX_FRAME]));
        assert_eq!(decoder.next_frame().unwrap().unwrap().len(), MAX_FRAME);
        let text = "x".repeat(MAX_FRAME - 2); // and two quotes
        assert_eq!(encode(&text).unwrap().len(), HEADER + MAX_FRAME);
        let text = "x".repeat(MAX_FRAME - 1);
        assert!(matches!(encode(&text), Err(CodecError::TooLong { .. })));
    }

    proptest! {
        #[test]
        fn frames_survive_any_cutting(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..8),
            cut in 1usize..50,
        ) {
            let stream: Vec<u8> = bodies.iter().flat_map(|body| framed(body)).collect();
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for piece in stream.chunks(cut) {
                decoder.push(piece);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    seen.push(frame.to_vec());
                }
            }
            prop_assert_eq!(seen, bodies);
            prop_assert!(decoder.next_frame().unwrap().is_none());
        }

        #[test]
        fn any_bytes_are_frames_or_errors(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let mut decoder = Decoder::default();
            for piece in bytes.chunks(7) {
                decoder.push(piece);
                while let Ok(Some(frame)) = decoder.next_frame() {
                    let _ = decode::<crate::Greeting>(frame);
                }
            }
        }
    }
}
