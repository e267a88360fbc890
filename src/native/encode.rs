//! Writes a plan's records as they lie in memory: the plan crate's types are made of integers, in
//! this machine's byte order.

use restore_plan::{
    Advice, Copy, Descriptor, Header, Landing, Layout, Mapping, Range, Signal, Source, Special,
    Table, Thread,
};

/// A record as bytes.
pub(super) trait Encode {
    /// Appends the record's bytes.
    fn encode(&self, to: &mut Vec<u8>);

    /// The record's bytes.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.encode(&mut bytes);
        bytes
    }
}

impl Encode for u64 {
    fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.to_le_bytes());
    }
}

impl Encode for u32 {
    fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.to_le_bytes());
    }
}

impl Encode for [u8; 16] {
    fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(self);
    }
}

macro_rules! records {
    ($($record:ident { $($field:ident),* })*) => {
        $(impl Encode for $record {
            fn encode(&self, to: &mut Vec<u8>) {
                // Names every field, so that a new one cannot be forgotten.
                let $record { $($field),* } = self;
                $($field.encode(to);)*
            }
        })*

        #[cfg(test)]
        fn sizes() -> Vec<(&'static str, usize, usize)> {
            vec![$((stringify!($record), size_of::<$record>(), $record::default().bytes().len())),*]
        }
    };
}

records! {
    Table { offset, count }
    Range { start, end }
    Header {
        magic, length, sources, mappings, copies, advices, signals, threads, specials, holes,
        descriptors, touched, names, layout, thaw, stack, rseq_length, rseq_signature
    }
    Source { kind, name, first, count }
    Mapping { start, length, offset, prot, flags }
    Copy { address, length, offset }
    Advice { start, length, call, value }
    Signal { number, handler, flags, restorer, mask, yields }
    Thread { clear_tid, fs_base, gs_base, landing }
    Landing { robust_list, robust_length, rseq, rseq_length, rseq_signature, name, context, mask }
    Descriptor { number, name, flags, position }
    Special { start, length, is_vdso }
    Layout {
        start_code, end_code, start_data, end_data, start_brk, brk, start_stack, at_phdr, at_base,
        at_entry, at_sysinfo_ehdr
    }
}

/// A plan in the making.
#[derive(Clone)]
pub(super) struct Encoder(Vec<u8>);

impl Encoder {
    /// An encoder that leaves room for the record at the start.
    pub(super) fn with_room_for<T>() -> Self {
        Self(vec![0; size_of::<T>()])
    }

    /// Appends records; where they are.
    pub(super) fn table<T: Encode>(&mut self, records: &[T]) -> Table {
        let offset = self.0.len() as u64;
        for record in records {
            record.encode(&mut self.0);
        }
        Table { offset, count: records.len() as u64 }
    }

    /// Appends bytes; where they are.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Table {
        let offset = self.0.len() as u64;
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        Table { offset, count: bytes.len() as u64 }
    }

    /// The plan with its header in place.
    pub(super) fn finish(mut self, mut header: Header) -> Vec<u8> {
        header.length = self.0.len() as u64;
        let header = header.bytes();
        self.0[..header.len()].copy_from_slice(&header);
        self.0
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn records_lie_in_a_plan_as_in_memory() {
        for (name, memory, plan) in super::sizes() {
            assert_eq!(memory, plan, "{name}");
        }
    }
}
