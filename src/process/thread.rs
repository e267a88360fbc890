//! Threads: registers and what else the kernel keeps for each.

use protobuf::MessageField;

use super::error::Inconsistency;
use super::messages::registers::{
    Thread_info_x86, User_x86_fpregs_entry, User_x86_regs_entry, User_x86_xsave_entry,
};
use super::messages::task::{Core_entry, Task_core_entry, Thread_core_entry};

/// A frozen thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thread {
    /// Its number when it was frozen.
    pub tid: u32,
    /// Its name, as bytes: the kernel does not care for an encoding.
    pub comm: Vec<u8>,
    /// General registers.
    pub registers: Registers,
    /// Floating point and vector registers.
    pub floating: FloatingPoint,
    /// Where the C library keeps the thread's number (`set_tid_address(2)`).
    pub clear_tid: u64,
    /// Head of the robust futex list and its length (`set_robust_list(2)`).
    pub robust: Option<(u64, u32)>,
    /// The registered area of rseq(2).
    pub rseq: Option<Rseq>,
    /// Blocked signals, bit N-1 for signal N.
    pub mask: u64,
    /// The signal stack (sigaltstack(2)); none where it is disabled.
    pub signal_stack: Option<SignalStack>,
    /// Signals sent to this thread and not delivered.
    pub pending: usize,
    /// Not 0 where a seccomp filter or strict mode is on (prctl(2), `PR_GET_SECCOMP`).
    pub seccomp: u32,
    /// Signal that the thread gets when its parent dies (prctl(2), `PR_SET_PDEATHSIG`); 0 for none.
    pub parent_death_signal: u32,
    /// It runs 32-bit code.
    pub compat: bool,
    /// It has a shadow stack that is on.
    pub shadow_stack: bool,
    /// It uses segments of `set_thread_area(2)`.
    pub segments: bool,
}

/// General registers, by the kernel's names (`struct user_regs_struct`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is the register of its name")]
pub struct Registers {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub bp: u64,
    pub bx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub ax: u64,
    pub cx: u64,
    pub dx: u64,
    pub si: u64,
    pub di: u64,
    pub orig_ax: u64,
    pub ip: u64,
    pub cs: u64,
    pub flags: u64,
    pub sp: u64,
    pub ss: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    pub ds: u64,
    pub es: u64,
    pub fs: u64,
    pub gs: u64,
}

/// x87, SSE and later vector registers, as the FXSAVE and XSAVE instructions lay them out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FloatingPoint {
    /// x87 control word.
    pub control: u16,
    /// x87 status word.
    pub status: u16,
    /// Abridged x87 tag word.
    pub tag: u8,
    /// Last x87 opcode.
    pub opcode: u16,
    /// Last x87 instruction's address.
    pub instruction: u64,
    /// Last x87 operand's address.
    pub operand: u64,
    /// SSE control and status.
    pub mxcsr: u32,
    /// Bits that `mxcsr` may have.
    pub mxcsr_mask: u32,
    /// The eight x87 registers, 16 bytes each.
    pub st: [u8; 128],
    /// The sixteen XMM registers.
    pub xmm: [u8; 256],
    /// `XSTATE_BV`: the components that are not in their initial state. None on a machine without
    /// XSAVE.
    pub in_use: Option<u64>,
    /// The components beyond x87 and SSE that were dumped, by their number.
    pub components: Vec<Component>,
}

/// One state component of XSAVE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Component {
    /// Its number: its bit in `XSTATE_BV`.
    pub number: u8,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// What was told to rseq(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rseq {
    /// Address of the area.
    pub address: u64,
    /// Length that it was registered with.
    pub length: u32,
    /// Signature before abort handlers.
    pub signature: u32,
}

/// A signal stack (sigaltstack(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignalStack {
    /// Lowest address.
    pub address: u64,
    /// Length in bytes.
    pub length: u64,
    /// `SS_` flags.
    pub flags: u32,
}

/// `SS_DISABLE` of the kernel's uapi/linux/signal.h.
const SS_DISABLE: u32 = 2;

impl Thread {
    pub(crate) fn new(tid: u32, core: &Core_entry) -> Result<Self, Inconsistency> {
        let info: &Thread_info_x86 = needed(&core.thread_info, "a thread's registers")?;
        let state: &Thread_core_entry = needed(&core.thread_core, "a thread's state")?;
        let general = needed(&info.gpregs, "a thread's general registers")?;
        let floating = needed(&info.fpregs, "a thread's floating point registers")?;
        // The process-wide part is only there for the main thread, and older dumps have its mask
        // only there.
        let task = core.tc.as_ref();
        let mask = state.blk_sigset.or_else(|| task.map(Task_core_entry::blk_sigset));
        let comm = state.comm.clone().or_else(|| task.map(|task| task.comm().to_vec()));
        let seccomp =
            state.seccomp_mode.or_else(|| task.and_then(|task| task.old_seccomp_mode)).unwrap_or(0);
        let shadow = floating.xsave.as_ref().and_then(|xsave| xsave.cet.as_ref());
        Ok(Self {
            tid,
            comm: comm.unwrap_or_default(),
            registers: registers(general),
            floating: floating_point(floating)?,
            clear_tid: info.clear_tid_addr(),
            robust: (state.futex_rla() != 0).then(|| (state.futex_rla(), state.futex_rla_len())),
            rseq: state.rseq_entry.as_ref().filter(|rseq| rseq.rseq_abi_pointer() != 0).map(
                |rseq| Rseq {
                    address: rseq.rseq_abi_pointer(),
                    length: rseq.rseq_abi_size(),
                    signature: rseq.signature(),
                },
            ),
            mask: mask.ok_or(Inconsistency::Missing("a thread's signal mask"))?,
            signal_stack: state.sas.as_ref().filter(|sas| sas.ss_flags() & SS_DISABLE == 0).map(
                |sas| SignalStack {
                    address: sas.ss_sp(),
                    length: sas.ss_size(),
                    flags: sas.ss_flags(),
                },
            ),
            pending: state.signals_p.signals.len(),
            seccomp,
            parent_death_signal: state.pdeath_sig(),
            compat: general.mode() != NATIVE,
            shadow_stack: shadow.is_some_and(|shadow| shadow.cet() != 0),
            segments: info.tls.iter().any(|segment| !segment.seg_not_present()),
        })
    }
}

const NATIVE: u32 = 1;

fn needed<'a, T>(field: &'a MessageField<T>, what: &'static str) -> Result<&'a T, Inconsistency> {
    field.as_ref().ok_or(Inconsistency::Missing(what))
}

fn registers(entry: &User_x86_regs_entry) -> Registers {
    Registers {
        r15: entry.r15(),
        r14: entry.r14(),
        r13: entry.r13(),
        r12: entry.r12(),
        bp: entry.bp(),
        bx: entry.bx(),
        r11: entry.r11(),
        r10: entry.r10(),
        r9: entry.r9(),
        r8: entry.r8(),
        ax: entry.ax(),
        cx: entry.cx(),
        dx: entry.dx(),
        si: entry.si(),
        di: entry.di(),
        orig_ax: entry.orig_ax(),
        ip: entry.ip(),
        cs: entry.cs(),
        flags: entry.flags(),
        sp: entry.sp(),
        ss: entry.ss(),
        fs_base: entry.fs_base(),
        gs_base: entry.gs_base(),
        ds: entry.ds(),
        es: entry.es(),
        fs: entry.fs(),
        gs: entry.gs(),
    }
}

fn floating_point(entry: &User_x86_fpregs_entry) -> Result<FloatingPoint, Inconsistency> {
    let xsave = entry.xsave.as_ref();
    Ok(FloatingPoint {
        control: entry.cwd() as u16,
        status: entry.swd() as u16,
        tag: entry.twd() as u8,
        opcode: entry.fop() as u16,
        instruction: entry.rip(),
        operand: entry.rdp(),
        mxcsr: entry.mxcsr(),
        mxcsr_mask: entry.mxcsr_mask(),
        st: words("the x87 registers", &entry.st_space)?,
        xmm: words("the XMM registers", &entry.xmm_space)?,
        in_use: xsave.map(User_x86_xsave_entry::xstate_bv),
        components: xsave.map(components).unwrap_or_default(),
    })
}

/// Numbers of the components: Intel SDM volume 1, 13.1.
fn components(xsave: &User_x86_xsave_entry) -> Vec<Component> {
    let narrow = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let wide = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect();
    [
        (2, narrow(&xsave.ymmh_space)),
        (3, wide(&xsave.bndreg_state)),
        (4, wide(&xsave.bndcsr_state)),
        (5, wide(&xsave.opmask_reg)),
        (6, wide(&xsave.zmm_upper)),
        (7, wide(&xsave.hi16_zmm)),
        (9, narrow(&xsave.pkru)),
    ]
    .into_iter()
    .map(|(number, bytes): (u8, Vec<u8>)| Component { number, bytes })
    .filter(|component| !component.bytes.is_empty())
    .collect()
}

fn words<const N: usize>(what: &'static str, words: &[u32]) -> Result<[u8; N], Inconsistency> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.try_into().map_err(|_| Inconsistency::Count {
        what,
        expected: N / size_of::<u32>(),
        found: words.len(),
    })
}
