"""Fresh kernels without the five seconds in which nearly every page imports fastai: they are forked from one process
that has imported it, and nothing of ours.

`forked.py serve SOCKET` is that process, until its input is closed; `forked.py SOCKET -f FILE`, which a kernelspec
names in place of `ipykernel_launcher -f FILE`, asks it for a kernel and ends as the kernel ends."""
import atexit, builtins, contextlib, gc, json, os, select, signal, socket, sys, threading

def ask(path, argv):
    "Ask for a kernel with the streams, folder and environment of this process; its exit code"
    signal.signal(signal.SIGINT, signal.SIG_IGN) # it comes before each request to end, which the kernel gets itself
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(path)
        socket.send_fds(s, [b'streams'], [0, 1, 2])
        s.sendall(json.dumps(dict(argv=argv, cwd=os.getcwd(), env=dict(os.environ))).encode() + b'\n')
        return int(s.recv(100) or 1)

class InteractiveShell: "What fastai takes for a notebook as it is imported"

def warm():
    "Import what pages import, as in a notebook"
    os.environ['MPLBACKEND'] = 'module://matplotlib_inline.backend_inline' # as a kernel has it
    builtins.get_ipython = InteractiveShell
    import fastai.vision.all, ipykernel.kernelapp  # noqa: F401
    del builtins.get_ipython
    gc.collect()
    gc.freeze() # a collection in a process that is forked leaves all this where it is
    if len(os.listdir('/proc/self/task')) > 1: sys.exit('a process with threads is no longer whole when it is forked')

def end(code=0):
    "What a process does as it ends, but for taking to pieces, object by object, what it has imported: over a second"
    threading._shutdown()
    atexit._run_exitfuncs()
    for f in sys.stdout, sys.stderr:
        with contextlib.suppress(Exception): f.flush()
    os._exit(code)

def watch(con, pid):
    "Say how the kernel ended; end it where nobody waits any longer"
    while not select.select([con], [], [], .05)[0]:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            con.sendall(str(os.waitstatus_to_exitcode(status)).encode())
            os._exit(0)
    os.killpg(pid, signal.SIGKILL)
    os._exit(0)

def become(streams, argv, cwd, env):
    "Make this process what a new one would be"
    import random, numpy as np
    os.setsid()
    for i,fd in enumerate(streams):
        os.dup2(fd, i)
        os.close(fd)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = [*argv, f'--IPKernelApp.parent_handle={os.getppid()}'] # from JPY_PARENT_PID in a new process
    random.seed()
    np.random.seed()

def serve(path):
    "Answer until the input is closed; a process that is to be a kernel comes back from here"
    signal.signal(signal.SIGCHLD, signal.SIG_IGN) # no zombies of those that watch
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(path)
        s.listen()
        print('ready', flush=True)
        while s in select.select([s, 0], [], [])[0]:
            con = s.accept()[0]
            if os.fork():
                con.close()
                continue
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _, streams, *_ = socket.recv_fds(con, len(b'streams'), 3)
            with con.makefile() as f: asked = json.loads(f.readline())
            if pid := os.fork(): watch(con, pid)
            con.close()
            return become(streams, **asked)
    os._exit(0)

if __name__ == '__main__':
    if sys.argv[1] != 'serve': sys.exit(ask(sys.argv[1], sys.argv[:1] + sys.argv[2:]))
    del sys.path[0] # this folder
    warm()
    serve(sys.argv[2])
    from ipykernel import kernelapp
    kernelapp.launch_new_instance()
    end()
