"""Fresh processes without the six seconds in which nearly all of them import fastai: they are forked from one that has
imported it, and nothing of ours.

`forked.py serve FOLDER` is that process, twice: one imported as in a script, the other as in a notebook. They live as
long as somebody holds FOLDER/alive open. `forked.py FOLDER/script ARGUMENTS` does what `python ARGUMENTS` does, with
the streams, folder and environment that it has itself, and ends as that ends; but a signal other than SIGKILL does not
arrive, there is one seed of hashes for all, and what imports say is not heard. With an environment that might have
made an import another one, a real process is started."""
import atexit, builtins, gc, json, os, select, signal, socket, sys, threading, time, warnings

# What no import of a library reads: it is ours, or is asked for when it is needed
FREE = ('TLCOURSE_', 'FASTAI_HOME', 'IN_TEST', 'PYTEST_', 'TERM', 'COLUMNS', 'LINES', 'PWD', 'OLDPWD',
        'RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_', 'JPY_', 'JUPYTER', 'IPYTHONDIR', 'http_proxy', 'https_proxy',
        'HTTP_PROXY', 'HTTPS_PROXY', 'all_proxy', 'ALL_PROXY', 'no_proxy', 'NO_PROXY', 'CLICOLOR', 'FORCE_COLOR',
        'GIT_', 'PAGER', 'PYDEVD_', 'OUT', '_')

def ask(path, argv):
    "Ask for a process with the streams, folder and environment of this one; its exit code"
    signal.signal(signal.SIGINT, signal.SIG_IGN) # it comes before each request to end, which a kernel gets itself
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(path)
        socket.send_fds(s, [b'streams'], [0, 1, 2])
        s.sendall(json.dumps(dict(argv=argv, cwd=os.getcwd(), env=dict(os.environ))).encode() + b'\n')
        code = int(s.recv(100) or 1)
    if code < 0: # by a signal
        if -code != signal.SIGKILL: signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code

class InteractiveShell: "What fastai takes for a notebook as it is imported"

began, added, own = dict(os.environ), {}, () # the environment; what imports add to it; what a kernel sets itself

def warm(notebook):
    "Import what scripts import, or pages in a notebook"
    said = os.dup(2)
    with open(os.devnull, 'w') as f: os.dup2(f.fileno(), 2)
    global own
    if notebook:
        own = 'MPLBACKEND',
        os.environ['MPLBACKEND'] = 'module://matplotlib_inline.backend_inline' # as a kernel has it
        builtins.get_ipython = InteractiveShell
        import ipykernel.kernelapp # noqa: F401
    import fastai.vision.all # noqa: F401
    if notebook: del builtins.get_ipython
    os.dup2(said, 2)
    os.close(said)
    added.update({k: v for k,v in os.environ.items() if k != 'MPLBACKEND' and began.get(k) != v})
    gc.collect()
    gc.freeze() # a collection in a process that is forked leaves all this where it is
    if len(os.listdir('/proc/self/task')) > 1: sys.exit('a process with threads is no longer whole when it is forked')

def end(code=0):
    "What a process does as it ends, but for taking to pieces, object by object, what it has imported: over a second"
    threading._shutdown()
    atexit._run_exitfuncs()
    for f in sys.stdout, sys.stderr:
        try: f.flush()
        except Exception: code = code or 120 # as Python has it
    os._exit(code)

def watch(con, pid):
    "Say how the process ended; end it where nobody waits any longer"
    while not select.select([con], [], [], .05)[0]:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            con.sendall(str(os.waitstatus_to_exitcode(status)).encode())
            os._exit(0)
    os.killpg(pid, signal.SIGKILL)
    os._exit(0)

def fixed(env): return {k: v for k,v in env.items() if not k.startswith(FREE) and k not in own and k not in added}

def become(streams, argv, cwd, env):
    "Make this process what a new one would be, or start a new one in its place"
    import random, numpy as np, torch
    from fastai.data.external import fastai_cfg
    os.setsid()
    for i,fd in enumerate(streams):
        os.dup2(fd, i)
        os.close(fd)
    os.chdir(cwd)
    if fixed(env) != fixed(began): os.execve(sys.executable, [sys.executable, *argv], env)
    os.environ.clear()
    os.environ.update(env | added)
    fastai_cfg.cache_clear()
    sys.stdout.reconfigure(line_buffering=sys.stdout.isatty())
    random.seed()
    np.random.seed()
    torch.default_generator.seed() # a new process has a number of its own

def main(argv):
    "What `python argv` does"
    while argv[0] == '-W':
        sys.warnoptions.append(argv[1])
        warnings._processoptions(argv[1:2])
        argv = argv[2:]
    what, at = argv[0], '' if argv[0] == '-c' else os.getcwd()
    if what == '-m':
        import runpy
        sys.argv, sys.path[:0] = argv[1:], [at]
        if argv[1] == 'ipykernel_launcher': # from JPY_PARENT_PID in a new process
            sys.argv.append(f'--IPKernelApp.parent_handle={os.getppid()}')
        return runpy.run_module(argv[1], run_name='__main__', alter_sys=True)
    m = sys.modules['__main__'] = type(sys)('__main__')
    m.__builtins__ = builtins
    if what == '-c': code, sys.argv = compile(argv[1], '<string>', 'exec'), ['-c', *argv[2:]]
    else:
        m.__file__, sys.argv = os.path.abspath(what), argv
        at = os.path.dirname(m.__file__)
        with open(what, 'rb') as f: code = compile(f.read(), m.__file__, 'exec')
    sys.path.insert(0, at)
    exec(code, vars(m))

def serve(path, alive):
    "Answer until nobody is there; a process that is to be another one comes back from here with its arguments"
    signal.signal(signal.SIGCHLD, signal.SIG_IGN) # no zombies of those that watch
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(path + '.new')
        s.listen(64)
        with open(path + '.seconds', 'w') as f: f.write(str(time.process_time())) # What a new process would take
        os.rename(path + '.new', path) # there when it listens
        while s in select.select([s, alive], [], [])[0]:
            con = s.accept()[0]
            if os.fork():
                con.close()
                continue
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.close(alive)
            _, streams, *_ = socket.recv_fds(con, len(b'streams'), 3)
            with con.makefile() as f: asked = json.loads(f.readline())
            if pid := os.fork(): watch(con, pid)
            con.close()
            become(streams, **asked)
            return asked['argv']
    os._exit(0)

if __name__ == '__main__':
    if sys.argv[1] != 'serve': sys.exit(ask(sys.argv[1], sys.argv[2:]))
    del sys.path[0] # this folder
    kind = sys.argv[3]
    warm(kind == 'notebook')
    argv = serve(os.path.join(sys.argv[2], kind), os.open(os.path.join(sys.argv[2], 'alive'),
                                                          os.O_RDONLY | os.O_NONBLOCK))
    code = 0
    try: main(argv)
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
        if code and not isinstance(e.code, int): print(e.code, file=sys.stderr)
    except BaseException as e:
        tb = e.__traceback__.tb_next.tb_next # without `main` of this file
        sys.excepthook(type(e), e.with_traceback(tb), tb)
        code = 1
    end(code & 255)
