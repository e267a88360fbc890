//! The signal frame by which a frozen thread becomes itself again: `rt_sigreturn(2)` loads every
//! register from it, the signal mask and the signal stack too.
//!
//! Facts: `struct rt_sigframe`, `struct sigcontext_64` and `struct _fpx_sw_bytes` of the kernel
//! (arch/x86/include/asm/sigframe.h, uapi/asm/sigcontext.h, uapi/asm/ucontext.h), and the checks of
//! `arch/x86/kernel/signal_64.c` and arch/x86/kernel/fpu/signal.c.

use crate::native::xsave::{IN_LEGACY, LEGACY, XsaveLayout};
use crate::process::{FloatingPoint, SignalStack, Thread};

/// The frame has extended floating point state.
const UC_FP_XSTATE: u64 = 1;
/// The frame has a stack segment, and it is to be taken as it is.
const UC_SIGCONTEXT_SS: u64 = 2;
const UC_STRICT_RESTORE_SS: u64 = 4;
const SS_DISABLE: u32 = 2;

/// Length of the kernel's `struct ucontext`.
const CONTEXT: usize = 304;
/// Offset of `uc_sigmask` in it.
const MASK: usize = 296;
/// Offset in the legacy area of what software may use, and its two marks.
const SOFTWARE: usize = 464;
const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;
const MAGIC2_LENGTH: usize = 4;
/// XRSTOR takes no other addresses.
const ALIGNMENT: u64 = 64;
/// `MXCSR` after reset: all exceptions masked.
const MXCSR: u32 = 0x1f80;
/// Where `XSTATE_BV` is: first in the header.
const XSTATE_BV: usize = LEGACY;
const PKRU: u8 = 9;

/// Length that a frame has at most, whatever its address.
#[must_use]
pub fn frame_size(xsave: &XsaveLayout) -> usize {
    CONTEXT + (ALIGNMENT as usize - 1) + xsave.size + MAGIC2_LENGTH
}

/// Address of the frame's signal mask, eight bytes, in a frame at `context_address`.
#[must_use]
pub fn mask_address(context_address: u64) -> u64 {
    context_address + MASK as u64
}

/// The bytes of the frame's `ucontext` and, behind it, its floating point state, to be put at
/// `context_address`: the stack pointer of the thread that calls `rt_sigreturn(2)`.
#[must_use]
pub fn signal_frame(thread: &Thread, xsave: &XsaveLayout, context_address: u64) -> Vec<u8> {
    let floating_address = (context_address + CONTEXT as u64).next_multiple_of(ALIGNMENT);
    let mut frame = context(thread, floating_address);
    frame.resize((floating_address - context_address) as usize, 0);
    frame.extend(floating_state(&thread.floating, xsave));
    frame
}

fn context(thread: &Thread, floating_address: u64) -> Vec<u8> {
    let stack =
        thread.signal_stack.unwrap_or(SignalStack { address: 0, length: 0, flags: SS_DISABLE });
    let r = &thread.registers;
    let segments =
        (r.cs & 0xffff) | (r.gs & 0xffff) << 16 | (r.fs & 0xffff) << 32 | (r.ss & 0xffff) << 48;
    let words = [
        UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS,
        0, // uc_link
        stack.address,
        u64::from(stack.flags),
        stack.length,
        r.r8,
        r.r9,
        r.r10,
        r.r11,
        r.r12,
        r.r13,
        r.r14,
        r.r15,
        r.di,
        r.si,
        r.bp,
        r.bx,
        r.dx,
        r.ax,
        r.cx,
        r.sp,
        r.ip,
        r.flags,
        segments,
        0,
        0,
        0,
        0, // err, trapno, oldmask, cr2
        floating_address,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0, // reserved
        thread.mask,
    ];
    words.iter().flat_map(|word: &u64| word.to_le_bytes()).collect()
}

fn floating_state(state: &FloatingPoint, xsave: &XsaveLayout) -> Vec<u8> {
    let mut area = Area(vec![0; xsave.size + MAGIC2_LENGTH]);
    // What a machine without XSAVE dumped is x87 and SSE state in use.
    let mut in_use = state.in_use.unwrap_or(IN_LEGACY) & xsave.features & IN_LEGACY;
    area.put(0, &state.control.to_le_bytes());
    area.put(2, &state.status.to_le_bytes());
    area.put(4, &[state.tag]);
    area.put(6, &state.opcode.to_le_bytes());
    area.put(8, &state.instruction.to_le_bytes());
    area.put(16, &state.operand.to_le_bytes());
    // XRSTOR loads it whatever XSTATE_BV says, and a reserved bit in it is a fault.
    let mask = if state.mxcsr_mask == 0 { 0xffbf } else { state.mxcsr_mask };
    let mxcsr = if state.mxcsr == 0 && in_use & 2 == 0 { MXCSR } else { state.mxcsr & mask };
    area.put(24, &mxcsr.to_le_bytes());
    area.put(28, &state.mxcsr_mask.to_le_bytes());
    area.put(32, &state.st);
    area.put(160, &state.xmm);
    for component in &state.components {
        let Some(place) = xsave.place(component.number) else { continue };
        // The kernel writes the protection keys to the area but need not set their bit, and their
        // initial state is not the kernel's default.
        let used = state.in_use.is_some_and(|bits| bits & 1 << component.number != 0)
            || (component.number == PKRU && component.bytes.iter().any(|byte| *byte != 0));
        if used && component.bytes.len() <= place.length {
            area.put(place.offset, &component.bytes);
            in_use |= 1 << component.number;
        }
    }
    area.put(SOFTWARE, &FP_XSTATE_MAGIC1.to_le_bytes());
    area.put(SOFTWARE + 4, &((xsave.size + MAGIC2_LENGTH) as u32).to_le_bytes());
    area.put(SOFTWARE + 8, &xsave.features.to_le_bytes());
    area.put(SOFTWARE + 16, &(xsave.size as u32).to_le_bytes());
    area.put(XSTATE_BV, &in_use.to_le_bytes());
    area.put(xsave.size, &FP_XSTATE_MAGIC2.to_le_bytes());
    area.0
}

struct Area(Vec<u8>);

impl Area {
    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::native::xsave::{HEADER, Place};
    use crate::process::{Component, Registers};

    fn layout() -> XsaveLayout {
        let places = [(2, 576, 256), (5, 1088, 64), (6, 1152, 512), (7, 1664, 1024), (9, 2688, 8)];
        let places =
            places.into_iter().map(|(number, offset, length)| Place { number, offset, length });
        XsaveLayout::new(0b10_1110_0111, 2696, places)
    }

    fn thread(signal_stack: Option<SignalStack>, components: Vec<Component>) -> Thread {
        let mut thread = Thread {
            tid: 1,
            comm: b"python3".to_vec(),
            registers: Registers::default(),
            floating: FloatingPoint {
                control: 0x37f,
                status: 1,
                tag: 3,
                opcode: 4,
                instruction: 5,
                operand: 6,
                mxcsr: 0x1fa0,
                mxcsr_mask: 0xffff,
                st: [7; 128],
                xmm: [8; 256],
                in_use: Some(0b111),
                components,
            },
            clear_tid: 0,
            robust: None,
            rseq: None,
            mask: 0x1234_5678_9abc_def0,
            signal_stack,
            pending: 0,
            seccomp: 0,
            parent_death_signal: 0,
            compat: false,
            shadow_stack: false,
            segments: false,
        };
        thread.registers = Registers {
            ip: 0x40_1000,
            sp: 0x7fff_0000,
            cs: 0x33,
            ss: 0x2b,
            ..Registers::default()
        };
        thread
    }

    fn word(frame: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(frame[offset..offset + 8].try_into().expect("eight bytes"))
    }

    fn half(frame: &[u8], offset: usize) -> u32 {
        u32::from_le_bytes(frame[offset..offset + 4].try_into().expect("four bytes"))
    }

    /// The registers as the C library's `mcontext_t` lists them (sys/ucontext.h, `REG_R8`…).
    fn registers_of(frame: &[u8]) -> [u64; 17] {
        std::array::from_fn(|index| word(frame, 40 + 8 * index))
    }

    /// What the kernel takes for the frame's extended state: where it is and how long, with its own
    /// conditions.
    fn extended(frame: &[u8], context: u64, user_size: usize) -> Option<(usize, usize)> {
        let address = word(frame, 40 + 8 * 23);
        let at = (address - context) as usize;
        let size = half(frame, at + SOFTWARE + 16) as usize;
        let length = half(frame, at + SOFTWARE + 4) as usize;
        let right = address.is_multiple_of(64)
            && half(frame, at + SOFTWARE) == FP_XSTATE_MAGIC1
            && (LEGACY + HEADER..=user_size).contains(&size)
            && size <= length
            && half(frame, at + size) == FP_XSTATE_MAGIC2;
        right.then_some((at, size))
    }

    proptest! {
        #[test]
        fn every_register_comes_back(values in prop::array::uniform18(any::<u64>()), context in (0_u64..1 << 40).prop_map(|at| at * 8)) {
            let mut thread = thread(None, Vec::new());
            let [r8, r9, r10, r11, r12, r13, r14, r15, di, si, bp, bx, dx, ax, cx, sp, ip, flags] = values;
            thread.registers = Registers { r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, ip, flags, sp, ..thread.registers };
            let frame = signal_frame(&thread, &layout(), context);
            prop_assert_eq!(&registers_of(&frame)[..], &values[..17]);
            prop_assert_eq!(word(&frame, 40 + 8 * 17), flags);
            prop_assert_eq!(word(&frame, 40 + 8 * 18), 0x002b_0000_0000_0033);
            prop_assert_eq!(word(&frame, (mask_address(context) - context) as usize), thread.mask);
            prop_assert!(frame.len() <= frame_size(&layout()));
            prop_assert!(extended(&frame, context, layout().size).is_some());
        }
    }

    #[test]
    fn the_legacy_area_is_as_fxsave_writes_it() {
        let frame = signal_frame(&thread(None, Vec::new()), &layout(), 0x1000);
        let (at, _) = extended(&frame, 0x1000, 2696).expect("the kernel takes it");
        assert_eq!(half(&frame, at), 0x0001_037f);
        assert_eq!(half(&frame, at + 4), 0x0004_0003);
        assert_eq!((word(&frame, at + 8), word(&frame, at + 16)), (5, 6));
        assert_eq!((half(&frame, at + 24), half(&frame, at + 28)), (0x1fa0, 0xffff));
        assert!(frame[at + 32..at + 160].iter().all(|byte| *byte == 7));
        assert!(frame[at + 160..at + 416].iter().all(|byte| *byte == 8));
    }

    #[test]
    fn components_are_at_their_places_and_only_those_in_use() {
        let components = vec![
            Component { number: 2, bytes: vec![0xaa; 256] },
            Component { number: 5, bytes: vec![0xbb; 64] },
            Component { number: 9, bytes: vec![0x54, 0x55, 0x55, 0x55, 0, 0, 0, 0] },
        ];
        let frame = signal_frame(&thread(None, components), &layout(), 0x1000);
        let (at, size) = extended(&frame, 0x1000, 2696).expect("the kernel takes it");
        assert_eq!(size, 2696);
        assert_eq!(word(&frame, at + XSTATE_BV), 0b10_0000_0111);
        assert!(frame[at + 576..at + 832].iter().all(|byte| *byte == 0xaa));
        assert!(frame[at + 1088..at + 1152].iter().all(|byte| *byte == 0));
        assert_eq!(word(&frame, at + 2688), 0x5555_5554);
        assert_eq!(word(&frame, at + SOFTWARE + 8), 0b10_1110_0111);
    }

    #[test]
    fn a_component_that_this_machine_lacks_is_left_out() {
        let components = vec![Component { number: 2, bytes: vec![0xaa; 256] }];
        let layout = XsaveLayout::new(3, LEGACY + HEADER, std::iter::empty());
        let frame = signal_frame(&thread(None, components), &layout, 0x1000);
        let (at, _) = extended(&frame, 0x1000, layout.size).expect("the kernel takes it");
        assert_eq!(word(&frame, at + XSTATE_BV), 0b11);
    }

    #[test]
    fn a_state_that_was_never_used_is_valid() {
        let mut thread = thread(None, Vec::new());
        thread.floating.in_use = Some(0);
        thread.floating.mxcsr = 0;
        let frame = signal_frame(&thread, &layout(), 0x1000);
        let (at, _) = extended(&frame, 0x1000, 2696).expect("the kernel takes it");
        assert_eq!((half(&frame, at + 24), word(&frame, at + XSTATE_BV)), (MXCSR, 0));
    }

    #[test]
    fn the_signal_stack_is_given_or_disabled() {
        let frame = signal_frame(&thread(None, Vec::new()), &layout(), 0x1000);
        assert_eq!([word(&frame, 16), word(&frame, 24), word(&frame, 32)], [0, 2, 0]);
        let stack = SignalStack { address: 0x5000, length: 0x2000, flags: 1 << 31 };
        let frame = signal_frame(&thread(Some(stack), Vec::new()), &layout(), 0x1000);
        assert_eq!(
            [word(&frame, 16), word(&frame, 24), word(&frame, 32)],
            [0x5000, 1 << 31, 0x2000]
        );
    }
}
