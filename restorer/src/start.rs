//! What the kernel put on the new process's stack (`fs/binfmt_elf.c`, `create_elf_tables`): argument
//! vector, environment vector, auxiliary vector, strings.

use restore_plan::{HANDOVER_NAME, HANDOVER_TEXT, Handover, OPTION_CHILDREN, PAGE};

const AT_BASE: usize = 7;
const AT_EXECFN: usize = 31;
const AT_SYSINFO_EHDR: usize = 33;

/// The new process's start-up data.
pub(crate) struct Start {
    pub(crate) argv: *const *const u8,
    pub(crate) envp: *mut *mut u8,
    /// Number of environment strings, ours included.
    environment: usize,
    pub(crate) auxv: *mut usize,
    pub(crate) handover: Handover,
    /// One past the last byte of the environment that the program is to see.
    pub(crate) env_end: usize,
}

impl Start {
    /// Finds the data and, as its last environment string, the handover; `None` where there is
    /// none, which means that nobody wants this process to be replaced.
    ///
    /// # Safety
    ///
    /// `argv` and `envp` are what the dynamic loader hands to constructors.
    pub(crate) unsafe fn find(argv: *const *const u8, envp: *mut *mut u8) -> Option<Self> {
        let mut environment = 0;
        // SAFETY: the vector ends with a null pointer, where this stops.
        while unsafe { !envp.add(environment).read().is_null() } {
            environment += 1;
        }
        if environment < 2 {
            return None;
        }
        // SAFETY: the index is below the number of strings.
        let last = unsafe { envp.add(environment - 1).read() };
        // SAFETY: a string of the environment ends with NUL; `starts_with` stops at a difference.
        let text = unsafe { starts_with(last, HANDOVER_NAME) }?;
        let mut digits = [0; HANDOVER_TEXT];
        for (place, digit) in digits.iter_mut().enumerate() {
            // SAFETY: stops at the string's NUL at the latest.
            *digit = unsafe { text.add(place).read() };
            if *digit == 0 {
                return None;
            }
        }
        let handover = Handover::from_text(&digits)?;
        // SAFETY: the auxiliary vector follows the environment's null pointer.
        let auxv = unsafe { envp.add(environment + 1).cast::<usize>() };
        Some(Self { argv, envp, environment, auxv, handover, env_end: 0 })
    }

    fn auxiliary(&self, key: usize) -> usize {
        let mut entry = self.auxv;
        loop {
            // SAFETY: the vector ends with AT_NULL (0), where this stops.
            let (found, value) = unsafe { (entry.read(), entry.add(1).read()) };
            if found == key {
                return value;
            }
            if found == 0 {
                return 0;
            }
            // SAFETY: not the last entry.
            entry = unsafe { entry.add(2) };
        }
    }

    /// Where the dynamic loader is mapped.
    pub(crate) fn loader(&self) -> usize {
        self.auxiliary(AT_BASE)
    }

    /// Where the vDSO is mapped; 0 for none.
    pub(crate) fn vdso(&self) -> usize {
        self.auxiliary(AT_SYSINFO_EHDR)
    }

    /// The path that was given to execve(2).
    pub(crate) fn executed(&self) -> *const u8 {
        self.auxiliary(AT_EXECFN) as *const u8
    }

    /// One past the highest address of the stack: the kernel puts the executed path there last,
    /// under one null word.
    pub(crate) fn stack_top(&self) -> usize {
        let mut end = self.executed();
        // SAFETY: a NUL-terminated string on the stack.
        while unsafe { end.read() } != 0 {
            // SAFETY: not yet at its NUL.
            end = unsafe { end.add(1) };
        }
        (end as usize + 1 + size_of::<usize>()).next_multiple_of(PAGE as usize)
    }

    /// Counts one more attempt in the handover's own string, for the next exec.
    pub(crate) fn count_attempt(&mut self) {
        self.handover.attempt += 1;
        let text = self.handover.to_text();
        // SAFETY: `find` checked that the string holds the name and that many digits.
        unsafe {
            let string = self.envp.add(self.environment - 1).read().add(HANDOVER_NAME.len());
            core::ptr::copy_nonoverlapping(text.as_ptr(), string, text.len());
        }
    }

    /// Points the vector of the environment at the strings on the stack again. glibc up to 2.36 puts a
    /// copy of GLIBC_TUNABLES in its place (elf/dl-tunables.c), in memory that is about to go.
    pub(crate) fn repair_environment(&mut self, stack: core::ops::Range<usize>) {
        let mut argument = self.argv;
        let mut string = core::ptr::null::<u8>();
        // SAFETY: both vectors end with a null pointer; the strings of the first and of the second
        // lie one after the other, in the order of the vectors, and end with NUL.
        unsafe {
            while !argument.read().is_null() {
                string = argument.read();
                argument = argument.add(1);
            }
            if string.is_null() {
                return;
            }
            for index in 0..self.environment {
                while string.read() != 0 {
                    string = string.add(1);
                }
                string = string.add(1);
                let entry = self.envp.add(index);
                if !stack.contains(&(entry.read() as usize)) {
                    entry.write(string.cast_mut());
                }
            }
        }
    }

    /// Takes our strings, the last of the environment, out of it. The last two are wiped; those for
    /// child processes, which stand before them, stay where they are.
    pub(crate) fn cut_environment(&mut self) {
        let audit = self.environment - 2;
        let children = self.handover.options & OPTION_CHILDREN != 0 && audit >= 2;
        let first = if children { audit - 2 } else { audit };
        // SAFETY: the indices are below the number of strings; the strings lie one after the other
        // in the order of the vector and end with NUL.
        unsafe {
            let end = self.envp.add(first).read();
            for index in first..audit + 2 {
                let mut byte = self.envp.add(index).read();
                while index >= audit && byte.read() != 0 {
                    byte.write(0);
                    byte = byte.add(1);
                }
                self.envp.add(index).write(core::ptr::null_mut());
            }
            self.environment = first;
            self.env_end = end as usize;
        }
    }
}

/// What follows `prefix` in a NUL-terminated string that starts with it.
///
/// # Safety
///
/// `string` is NUL-terminated.
unsafe fn starts_with(string: *const u8, prefix: &[u8]) -> Option<*const u8> {
    for (place, wanted) in prefix.iter().enumerate() {
        // SAFETY: every byte before this one was equal to one of `prefix`, hence not NUL.
        if unsafe { string.add(place).read() } != *wanted {
            return None;
        }
    }
    // SAFETY: at most the string's NUL.
    Some(unsafe { string.add(prefix.len()) })
}
